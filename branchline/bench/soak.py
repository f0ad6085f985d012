"""`branchline bench serve --soak-s S`: a server at saturation for long, then the books are checked.

Checked: nobody's request is lost, no process is replaced, every page of the key-value pool is free
or cached at the end and free after a flush, and no process grows once it is warm. The pool is
filled first and stays full, so what grows then is no memory that was promised to it. The time
between two pieces of text is stated, not judged.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TextIO

import branchline as bl
from branchline.bench.serve_load import Client
from branchline.bench.serve_work import Target
from branchline.bench.served import Served, served
from branchline.bench.shapes import words
from branchline.bench.soak_clients import Crowd, Tally
from branchline.runtime.bench.environment import header
from branchline.runtime.bench.latency import percentiles, slope
from branchline.runtime.bench.measure import json_line
from branchline.runtime.bench.report import Column, table
from branchline.runtime.errors import BackendError, InvalidRequest

COLUMNS = (
    Column("process"),
    Column("MB warm", right=True),
    Column("MB at the end", right=True),
    Column("growth MB/min", right=True),
    Column("flat"),
)
ALLOWED_MB, ALLOWED_SHARE = 8.0, 0.02
"""What a process may grow from warm to the end, by the fitted line: megabytes and part of its size.
Freed memory that an allocator keeps moves its size by as much."""

DRAIN_S = 120.0
"""Seconds that open requests get to end once no new ones come."""

SMALL_POOL = 16_384
"""Tokens of the key-value pool where none is chosen: small enough to be full all the time."""

Point = tuple[float, float]
"""Seconds since the start, 10^6 bytes."""


@dataclass(slots=True)
class Watch:
    """Sizes of the server's processes over time.

    Attributes:
        sizes: role -> points; processes that come and go by design are left out.
        pids: role -> every pid seen in it.
    """

    sizes: dict[str, list[Point]] = field(default_factory=dict)
    pids: dict[str, set[int]] = field(default_factory=dict)

    def add(self, seconds: float, sizes: dict[str, tuple[int, float]]) -> None:
        """One moment: role -> pid and size."""
        for role, (pid, size) in sizes.items():
            self.pids.setdefault(role, set()).add(pid)
            self.sizes.setdefault(role, []).append((seconds, size))

    @property
    def replaced(self) -> list[str]:
        """Roles that had more than one process."""
        return [role for role, pids in self.pids.items() if len(pids) > 1]


def growth(points: Sequence[Point], warm_s: float) -> dict[str, Any]:
    """How a process grew after `warm_s` seconds, and whether it counts as flat."""
    late = [point for point in points if point[0] >= warm_s]
    if len(late) < 2:
        raise InvalidRequest(
            "too few sizes after the warm-up", value=len(late), hint="Soak for longer."
        )
    rate = slope(late)
    grown = rate * (late[-1][0] - late[0][0])
    return {
        "mb_warm": late[0][1],
        "mb_end": late[-1][1],
        "mb_per_min": rate * 60,
        "flat": grown <= ALLOWED_MB + ALLOWED_SHARE * late[0][1],
    }


def soak(
    settings: dict[str, Any],
    *,
    seconds: float,
    at_once: int = 64,
    seed: int = 0,
    stream: TextIO = sys.stdout,
) -> dict[str, Any]:
    """Load a server for `seconds`; print what was checked and one JSON line.

    Returns:
        The report; `passed` is True when every check passed.
    """
    if seconds < 5 or at_once <= 0:
        raise InvalidRequest(
            "a soak needs at least 5 seconds and one request at once",
            value=f"{seconds:g} s, {at_once} at once",
            hint="Use --soak-s 600.",
        )
    watch = Watch()
    with (
        served({"kv_tokens": SMALL_POOL} | settings) as server,
        closing(bl.Endpoint(server.url, server.admin_key)) as endpoint,
    ):
        print(header(endpoint.info()), file=stream)
        tally, books = asyncio.run(_run(server, endpoint, watch, seconds, at_once, seed))
    warm_s = min(120.0, seconds / 3)
    memory = {role: growth(points, warm_s) for role, points in watch.sizes.items()}
    report = judge(tally, books, memory, watch.replaced) | {"s": seconds, "at_once": at_once}
    _print(report, memory, tally, stream)
    return report


async def _run(
    server: Served, endpoint: bl.Endpoint, watch: Watch, seconds: float, at_once: int, seed: int
) -> tuple[Tally, dict[str, Any]]:
    stop = asyncio.Event()
    async with Client(server) as client:
        await _fill(client)
        crowd = Crowd(Target(client, endpoint), seed)
        running = asyncio.create_task(crowd.run(at_once, stop))
        begin = time.perf_counter()
        while (now := time.perf_counter() - begin) < seconds and not running.done():
            watch.add(now, await asyncio.to_thread(sizes, server))
            await asyncio.sleep(min(1.0, seconds - now))
        stop.set()
        async with asyncio.timeout(DRAIN_S):
            await running
        quiet = await _quiet(client, endpoint)
        await client.flush()
        flushed = await _quiet(client, endpoint)
    return crowd.tally, _books(quiet, flushed)


async def _fill(client: Client) -> None:
    """Use every page of the pool once: the system gives a process its memory at the first use.

    Raises:
        BackendError: a request failed, or much more was sent than the pool holds.
    """
    capacity = (await client.info())["cache"]["capacity_tokens"]
    for batch in range(capacity // 250):  # four times the pool, as a word is a token or more
        bodies = [{"prompt": words(250, 10**7 + 4 * batch + i), "max_tokens": 1} for i in range(4)]
        await asyncio.gather(*(client.post("/v1/completions", body) for body in bodies))
        if (await client.info())["cache"]["evicted"]:
            return
    raise BackendError("the key-value pool cannot be filled", hint="Use a smaller --kv-tokens.")


def sizes(server: Served) -> dict[str, tuple[int, float]]:
    """Role -> pid and resident size in 10^6 bytes, of those processes that stay."""
    import psutil

    found: dict[str, tuple[int, float]] = {}
    for pid, role in server.processes().items():
        if role in ("http", "scheduler", "detokenizer"):
            found[role] = pid, psutil.Process(pid).memory_info().rss / 1e6
    return found


async def _quiet(client: Client, endpoint: bl.Endpoint) -> dict[str, Any]:
    """What the server says once nothing runs and its counters have settled.

    Raises:
        BackendError: something still runs after 30 s.
    """
    last: dict[str, Any] = {}
    for _ in range(60):
        await asyncio.sleep(0.5)
        now = await client.info()
        idle = now["scheduler"]["unfinished"] == 0 and now["open_requests"] == 0
        if idle and last == (last := _counted(now)):
            return now
    raise BackendError(
        "requests still run though every client has gone",
        value={key: now[key] for key in ("scheduler", "open_requests")},
        hint="This is a defect of the server: please report it.",
    )


def _counted(info: dict[str, Any]) -> dict[str, Any]:
    return {"cache": info["cache"], "finished": info["scheduler"]["finished"]}


def _books(quiet: dict[str, Any], flushed: dict[str, Any]) -> dict[str, Any]:
    cache, after = quiet["cache"], flushed["cache"]
    scheduler = flushed["scheduler"]
    return {
        "pages_leaked": cache["capacity_tokens"] - cache["free_tokens"] - cache["cached_tokens"],
        "pages_kept_by_flush": after["capacity_tokens"] - after["free_tokens"],
        "leases": after["leases"],
        "violations": after["violations"] + scheduler["audit_repairs"],
        "failed": scheduler["failed"],
        "retractions": scheduler["retractions"],
        "aborted": scheduler["aborted"],
    }


def judge(
    tally: Tally, books: dict[str, Any], memory: dict[str, Any], replaced: list[str]
) -> dict[str, Any]:
    """The report: what was counted, each check, and whether all passed."""
    wrong = ("pages_leaked", "pages_kept_by_flush", "leases", "violations")
    checks = {
        "no request lost": not tally.lost,
        "no page leaked": not any(books[name] for name in wrong),
        "no process replaced": not replaced,
        "memory flat": all(one["flat"] for one in memory.values()),
    }
    gaps = {f"itl_s_{name}": value for name, value in percentiles(tally.gaps).items()}
    return {
        "work": "soak",
        "passed": all(checks.values()),
        "checks": checks,
        "ended": sum(tally.ended.values()),
        "left": sum(tally.left.values()),
        "lost": len(tally.lost),
        "out_tok": tally.tokens,
        **gaps,
        **books,
        "memory": memory,
    }


def _print(report: dict[str, Any], memory: dict[str, Any], tally: Tally, stream: TextIO) -> None:
    rows = [
        [
            role,
            f"{one['mb_warm']:.1f}",
            f"{one['mb_end']:.1f}",
            f"{one['mb_per_min']:+.2f}",
            "yes" if one["flat"] else "NO",
        ]
        for role, one in memory.items()
    ]
    title = f"{report['s']:g} s at {report['at_once']} requests at once"
    table(title, COLUMNS, rows, stream)
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(tally.ended.items()))
    print(f"answered {report['ended']} ({kinds}); {report['left']} clients left", file=stream)
    print(
        f"between two pieces of text: p50 {1e3 * report['itl_s_p50']:.1f} ms, "
        f"p99 {1e3 * report['itl_s_p99']:.1f} ms",
        file=stream,
    )
    for reason, count in Counter(tally.lost).most_common(10):
        print(f"lost {count} x {reason}", file=stream)
    for name, passed in report["checks"].items():
        print(f"{name}: {'yes' if passed else 'NO'}", file=stream)
    print(json_line(**report), file=stream)
