"""`branchline bench serve --against-engine`: what HTTP and the processes cost.

The same token ids and lengths, by streams on the engine in this process and through
`/v1/completions` of a server. The engine is measured before and after the server: how far these two
are apart (`drift`) says how much of the difference is the machine's.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TextIO

from branchline.bench.serve_load import Call, Client, closed_loop
from branchline.bench.served import served
from branchline.runtime.bench.environment import header
from branchline.runtime.bench.latency import Timing
from branchline.runtime.bench.measure import json_line
from branchline.runtime.bench.report import Column, table
from branchline.runtime.bench.workloads import prompts
from branchline.runtime.core.messages import GenerateRequest
from branchline.runtime.core.outputs import GenerateDelta, GenerateResult
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine import Engine
from branchline.runtime.engine_client import EngineClient
from branchline.runtime.errors import BackendError

COLUMNS = (
    Column("where"),
    Column("first text ms p50", right=True),
    Column("1 + 1 tokens ms p50", right=True),
    Column("tokens/s, streams at once", right=True),
    Column("all rounds"),
)
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 128
WARM_UP = 10

Make = Callable[[list[int], int], Call]
"""Prompt ids and how many tokens to generate -> a call."""


def against_engine(
    settings: dict[str, Any],
    *,
    streams: int = 64,
    requests: int = 200,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> dict[str, Any]:
    """Measure, print a table and one JSON line.

    Args:
        streams: at once, for the throughput.
        requests: one by one, for the first token.

    Raises:
        BackendError: a request failed; there is nothing to compare then.
    """
    runs: list[dict[str, Any]] = []

    def engine() -> None:
        with Engine(**settings) as made:
            if not runs:
                print(header(made.core.info()), file=stream)
            vocabulary = made.tokenizer.vocab_size
            client = EngineClient(made.core, prefix="bench")
            make = partial(_on_engine, client)
            counts.append(vocabulary)
            runs.append(asyncio.run(_measure(make, vocabulary, streams, requests, repeats)))

    counts: list[int] = []
    engine()
    with served(settings) as server:

        async def run() -> dict[str, Any]:
            async with Client(server) as client:
                make = partial(_on_server, client)
                return await _measure(make, counts[0], streams, requests, repeats)

        runs.append(asyncio.run(run()))
    engine()
    report = compare(*runs) | {"work": "against-engine", "streams": streams}
    names = ("engine", "server", "engine again")
    rows = [_row(name, one) for name, one in zip(names, runs, strict=True)]
    table(f"{requests} requests one by one, {streams} streams at once", COLUMNS, rows, stream)
    print(
        f"the server reaches {report['throughput']:.1%} of the engine's throughput and adds "
        f"{1e3 * report['ttft_added_s']:.2f} ms to the first text (p50); the engine itself "
        f"moved by {report['drift']:.1%} meanwhile",
        file=stream,
    )
    print(json_line(**report), file=stream)
    return report


def compare(
    before: dict[str, Any], server: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any]:
    """The server's share of throughput, what it adds to the first text, and the engine's drift."""
    rates = before["all_tok_per_s"] + after["all_tok_per_s"]
    rate = statistics.median(rates)
    first = (before["ttft_s"] + after["ttft_s"]) / 2
    parts = [statistics.median(one["all_tok_per_s"]) for one in (before, after)]
    return {
        "throughput": statistics.median(server["all_tok_per_s"]) / rate,
        "ttft_added_s": server["ttft_s"] - first,
        "drift": abs(parts[0] - parts[1]) / rate,
        "ttft_s_engine": first,
        "ttft_s_server": server["ttft_s"],
        "tok_per_s_engine": rate,
        "tok_per_s_server": statistics.median(server["all_tok_per_s"]),
        "all_tok_per_s_engine": rates,
        "all_tok_per_s_server": server["all_tok_per_s"],
    }


async def _measure(
    make: Make, vocabulary: int, streams: int, requests: int, repeats: int
) -> dict[str, Any]:
    singles = prompts(requests + WARM_UP, 8, 8, 1, vocabulary)
    timings, _ = await closed_loop([make(ids, 2) for ids in singles], 1)
    counted = _good(timings)[WARM_UP:]
    rates: list[float] = []
    for round_ in range(repeats + 1):
        batch = prompts(streams, PROMPT_TOKENS, PROMPT_TOKENS, 1000 + round_, vocabulary)
        calls = [make(ids, OUTPUT_TOKENS) for ids in batch]
        timings, wall_s = await closed_loop(calls, streams)
        if round_:  # the first warms up
            rates.append(sum(one.tokens for one in _good(timings)) / wall_s)
    return {
        "ttft_s": statistics.median(one.first_s - one.begin_s for one in counted),
        "e2e_s": statistics.median(one.end_s - one.begin_s for one in counted),
        "all_tok_per_s": rates,
    }


def _good(timings: Sequence[Timing]) -> Sequence[Timing]:
    for one in timings:
        if one.failed:
            raise BackendError(f"a request failed: {one.failed}", hint="Use fewer --at-once.")
    return timings


def _on_engine(client: EngineClient, ids: list[int], tokens: int) -> Call:
    async def call(timing: Timing) -> int:
        sampling = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
        request = GenerateRequest(
            id=client.new_id(), prompt_ids=ids, sampling=sampling, stream=True
        )
        found = 0
        async for output in client.run(request):
            if isinstance(output, GenerateResult):
                found = output.meta.output_tokens
            elif isinstance(output, GenerateDelta) and output.text:
                timing.mark(time.perf_counter())
        return found

    return call


def _on_server(client: Client, ids: list[int], tokens: int) -> Call:
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    return partial(client.stream, "/v1/completions", body)


def _row(name: str, run: dict[str, Any]) -> list[str]:
    return [
        name,
        f"{1e3 * run['ttft_s']:.2f}",
        f"{1e3 * run['e2e_s']:.2f}",
        f"{statistics.median(run['all_tok_per_s']):.0f}",
        " ".join(f"{rate:.0f}" for rate in run["all_tok_per_s"]),
    ]
