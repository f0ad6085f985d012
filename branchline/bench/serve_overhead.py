"""`branchline bench serve --against-engine`: what HTTP and the processes cost.

The same token ids and lengths, by streams on the engine in this process and through
`/v1/completions` of a server. The engine is measured before and after the server: how far these two
are apart (`drift`) says how much of the difference is the machine's.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
from functools import partial
from typing import Any, TextIO

from branchline.bench.serve_load import Client
from branchline.bench.served import served
from branchline.runtime.bench.environment import header
from branchline.runtime.bench.loops import Call
from branchline.runtime.bench.measure import json_line
from branchline.runtime.bench.report import table
from branchline.runtime.bench.same_work import COLUMNS, measure, on_port, row
from branchline.runtime.engine import Engine
from branchline.runtime.engine_client import EngineClient


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
    vocabulary = 0

    def on_engine() -> None:
        nonlocal vocabulary
        with Engine(**settings) as engine:
            if not runs:
                print(header(engine.core.info()), file=stream)
            vocabulary = engine.tokenizer.vocab_size
            make = partial(on_port, EngineClient(engine.core, prefix="bench"))
            runs.append(asyncio.run(measure(make, vocabulary, streams, requests, repeats)))

    async def on_server() -> None:
        with served(settings) as server:
            async with Client(server) as client:
                make = partial(_on_server, client)
                runs.append(await measure(make, vocabulary, streams, requests, repeats))

    on_engine()
    asyncio.run(on_server())
    on_engine()
    report = compare(*runs) | {"work": "against-engine", "streams": streams}
    names = ("engine", "server", "engine again")
    rows = [row(name, one) for name, one in zip(names, runs, strict=True)]
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


def _on_server(client: Client, ids: list[int], tokens: int) -> Call:
    body = {"prompt": ids, "max_tokens": tokens, "temperature": 0.0, "ignore_eos": True}
    return partial(client.stream, "/v1/completions", body)
