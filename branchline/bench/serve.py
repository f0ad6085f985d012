"""`branchline bench serve`: what clients of a server wait for, and how much it answers.

The server is `branchline serve` in processes of its own; the client is this process. Each round
draws other texts and starts with an empty prefix cache; the first warms up and is not counted.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import closing
from typing import Any, TextIO

import branchline as bl
from branchline.bench.serve_load import Client
from branchline.bench.serve_work import WORK, Target, Work, chosen
from branchline.bench.served import Served, served
from branchline.runtime.bench.environment import header
from branchline.runtime.bench.latency import over_runs, poisson_times, summary
from branchline.runtime.bench.loops import closed_loop, open_loop
from branchline.runtime.bench.measure import json_line, spread
from branchline.runtime.bench.report import Column, table
from branchline.runtime.errors import BackendError, InvalidRequest

COLUMNS = (
    Column("work"),
    Column("requests", right=True),
    Column("failed", right=True),
    Column("first text ms p50", right=True),
    Column("p99", right=True),
    Column("between ms p50", right=True),
    Column("p99", right=True),
    Column("whole s p50", right=True),
    Column("p99", right=True),
    Column("requests/s", right=True),
    Column("tokens/s", right=True),
    Column("spread", right=True),
)
ROUND_S = 600.0
"""Seconds until a round is given up."""


def serve(
    settings: dict[str, Any],
    *,
    names: list[str] | None = None,
    rate: float | None = None,
    at_once: int = 64,
    requests: int = 128,
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> list[dict[str, Any]]:
    """Measure the workloads; print a table and a JSON line for each.

    Args:
        rate: requests a second, arriving at random (open loop); None = `at_once` are always open.
        requests: of one round.

    Raises:
        InvalidRequest: an unknown workload, or numbers that are not above 0.
        BackendError: the server did not start, or a round took longer than `ROUND_S`.
    """
    if names == ["list"]:
        for work in WORK.values():
            print(f"{work.name:<15}{work.about}", file=stream)
        return []
    works = chosen(names)
    for name, value in (("rate", rate), ("at_once", at_once), ("requests", requests)):
        if value is not None and value <= 0:
            raise InvalidRequest(f"{name} must be above 0", value=value, hint="Raise it.")
    load = f"{at_once} at once" if rate is None else f"{rate:g} requests/s (Poisson)"
    found: list[dict[str, Any]] = []
    with (
        served(settings) as server,
        closing(bl.Endpoint(server.url, server.admin_key)) as endpoint,
    ):
        info = endpoint.info()
        print(header(info), file=stream)
        for work in works:
            runs = asyncio.run(_rounds(work, server, endpoint, rate, at_once, requests, repeats))
            print(f"  {work.name} done", file=sys.stderr)
            found.append({"work": work.name, **over_runs(runs)})
    title = f"{load}, median of {repeats} rounds of {requests}"
    table(title, COLUMNS, [_row(item) for item in found], stream)
    for item in found:
        load_of: dict[str, Any] = {"load": "closed", "at_once": at_once}
        if rate is not None:
            load_of = {"load": "open", "rate": rate}
        print(json_line(model=str(info.get("model")), **load_of, **item), file=stream)
    return found


async def _rounds(
    work: Work,
    server: Served,
    endpoint: bl.Endpoint,
    rate: float | None,
    at_once: int,
    requests: int,
    repeats: int,
) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    async with Client(server) as client:
        target = Target(client, endpoint)
        for round_ in range(repeats + 1):
            calls = [work.make(target, round_, number) for number in range(requests)]
            await client.flush()
            try:
                async with asyncio.timeout(ROUND_S):
                    if rate is None:
                        timings, wall_s = await closed_loop(calls, at_once)
                    else:
                        times = poisson_times(rate, requests, round_)
                        timings, wall_s = await open_loop(calls, times)
            except TimeoutError as error:
                raise BackendError(
                    f"a round of {work.name} took longer than {ROUND_S:g} s",
                    hint="Use fewer --requests or a higher --rate.",
                ) from error
            first = next((one.failed for one in timings if one.failed), None)
            if first:
                print(f"  {work.name}, round {round_}: {first}", file=sys.stderr)
            if round_:
                runs.append(summary(timings, wall_s))
    return runs


def _row(item: dict[str, Any]) -> list[str]:
    return [
        item["work"],
        str(item["requests"]),
        str(item["failed"]),
        f"{1e3 * item['ttft_s_p50']:.1f}",
        f"{1e3 * item['ttft_s_p99']:.1f}",
        f"{1e3 * item['itl_s_p50']:.1f}",
        f"{1e3 * item['itl_s_p99']:.1f}",
        f"{item['e2e_s_p50']:.3f}",
        f"{item['e2e_s_p99']:.3f}",
        f"{item['req_per_s']:.2f}",
        f"{item['tok_per_s']:.1f}",
        f"{spread(item['all_tok_per_s']):.0%}",
    ]
