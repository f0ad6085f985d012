"""`branchline bench processes`: what it costs to have scheduler and detokenizer in processes.

The same requests, as token ids, on an engine in this process and on one in processes of its own,
one after the other. Times are what the caller sees, from handing a request to the port on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TextIO

from branchline.runtime.bench.measure import json_line
from branchline.runtime.bench.report import table
from branchline.runtime.bench.same_work import COLUMNS, measure, on_port, row
from branchline.runtime.bench.workloads import VOCABULARY
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.engine_client import EngineClient


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
    for name in ("in process", "processes"):
        with _port(name, settings) as port:
            make = partial(on_port, EngineClient(port, prefix="bench"))
            report = asyncio.run(measure(make, VOCABULARY, streams, requests, repeats))
        found.append({"work": "processes", "engine": name, "streams": streams, **report})
    here, there = found
    added = {key: (there[key] - here[key]) * 1e3 for key in ("ttft_s", "e2e_s")}
    share = there["tok_per_s"] / here["tok_per_s"]
    rows = [row(report["engine"], report) for report in found]
    table(f"{requests} requests one by one, {streams} streams at once", COLUMNS, rows, stream)
    print(
        f"processes add {added['ttft_s']:.2f} ms to the first token and "
        f"{added['e2e_s']:.2f} ms to a request (medians), and reach {share:.1%} of the "
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
