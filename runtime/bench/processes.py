"""`branchline bench processes`: what it costs to have scheduler and detokenizer in processes.

The same requests, as token ids, on an engine in this process and on one in processes of its own,
one after the other. `ttft_s` and `latency_s` are what the caller sees, from handing a request to
the port until the first piece, or the result, arrives.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from branchline.runtime.bench.measure import json_line
from branchline.runtime.bench.report import Column, table
from branchline.runtime.bench.workloads import prompts
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import GenerateResult
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine_client import EngineClient

COLUMNS = (
    Column("engine"),
    Column("first token, ms", right=True),
    Column("1 + 1 tokens, ms", right=True),
    Column("tokens/s, streams at once", right=True),
    Column("all runs"),
)
STREAM_TOKENS = 128


def processes(
    settings: dict[str, Any],
    *,
    streams: int = 64,
    requests: int = 200,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> list[dict[str, Any]]:
    """Measure both kinds of engine and print a table and a JSON line for each."""
    found: list[dict[str, Any]] = []
    rows: list[list[str]] = []
    for name in ("in process", "processes"):
        with _port(name, settings) as port:
            report = asyncio.run(_measure(port, streams, requests, repeats))
        report |= {"work": "processes", "engine": name, "streams": streams}
        found.append(report)
        rows.append(
            [
                name,
                f"{report['ttft_s'] * 1e3:.2f}",
                f"{report['latency_s'] * 1e3:.2f}",
                f"{report['tok_per_s']:.0f}",
                " ".join(f"{value:.0f}" for value in report["all_tok_per_s"]),
            ]
        )
    here, there = found
    added = {key: (there[key] - here[key]) * 1e3 for key in ("ttft_s", "latency_s")}
    share = there["tok_per_s"] / here["tok_per_s"]
    table(f"{requests} requests one by one, {streams} streams", COLUMNS, rows, stream)
    print(
        f"processes add {added['ttft_s']:.2f} ms to the first token and "
        f"{added['latency_s']:.2f} ms to a request (medians), and reach {share:.1%} of the "
        "throughput",
        file=stream,
    )
    for report in found:
        print(json_line(**report), file=stream)
    return found


@contextmanager
def _port(name: str, settings: dict[str, Any]) -> Iterator[EnginePort]:
    if name == "in process":
        from branchline.runtime.engine import Engine

        with Engine(**settings) as engine:
            yield engine.core
    else:
        from branchline.runtime.launch.remote_engine import RemoteEngine

        with RemoteEngine(settings) as remote:
            yield remote.port


async def _measure(port: EnginePort, streams: int, requests: int, repeats: int) -> dict[str, Any]:
    client = EngineClient(port, prefix="bench")
    first: list[float] = []
    whole: list[float] = []
    for seed in range(requests + 10):
        ttft, latency, _ = await _one(client, prompts(1, 8, 8, seed)[0], 2)
        if seed >= 10:  # the first ones warm up
            first.append(ttft)
            whole.append(latency)
    rates: list[float] = []
    for round_ in range(repeats + 1):
        batch = prompts(streams, 32, 32, 1000 + round_)
        begin = time.perf_counter()
        outputs = await asyncio.gather(*(_one(client, ids, STREAM_TOKENS) for ids in batch))
        seconds = time.perf_counter() - begin
        if round_:
            rates.append(sum(count for *_, count in outputs) / seconds)
    return {
        "ttft_s": statistics.median(first),
        "latency_s": statistics.median(whole),
        "tok_per_s": statistics.median(rates),
        "all_tok_per_s": rates,
    }


async def _one(client: EngineClient, ids: list[int], count: int) -> tuple[float, float, int]:
    """Seconds to the first output and to the last, and tokens."""
    sampling = SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
    request = GenerateRequest(id=client.new_id(), prompt_ids=ids, sampling=sampling, stream=True)
    begin = time.perf_counter()
    ttft, tokens = 0.0, 0
    async for output in client.run(request):
        ttft = ttft or time.perf_counter() - begin
        if isinstance(output, GenerateResult):
            tokens = output.meta.output_tokens
    return ttft, time.perf_counter() - begin, tokens
