"""Load from one event loop: calls that are timed, in closed and open loops.

A closed loop keeps N requests open and sends the next when one ends; it finds the throughput. An
open loop sends each request when it is due, whatever the server does; it finds the waiting. Times
count from when a request was due, so a server that stalls is not spared those that came meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import aiohttp

from branchline.runtime.bench.latency import Timing
from branchline.runtime.errors import BranchlineError

Call = Callable[[Timing], Awaitable[int]]
"""Makes one request, marks the pieces of text as they come, returns the tokens of its output."""


async def closed_loop(calls: Sequence[Call], at_once: int) -> tuple[list[Timing], float]:
    """Run all calls, `at_once` at a time; returns their times and the seconds of the whole."""
    waiting = iter(calls)
    timings: list[Timing] = []

    async def work() -> None:
        for call in waiting:
            timings.append(await timed(call, time.perf_counter()))

    begin = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(min(at_once, len(calls)))))
    return timings, time.perf_counter() - begin


async def open_loop(calls: Sequence[Call], times: Sequence[float]) -> tuple[list[Timing], float]:
    """Start each call at its time, seconds from now; returns as `closed_loop` does."""
    begin = time.perf_counter()

    async def start(call: Call, due_s: float) -> Timing:
        await asyncio.sleep(max(0.0, begin + due_s - time.perf_counter()))
        return await timed(call, begin + due_s)

    timings = await asyncio.gather(*map(start, calls, times))
    return timings, time.perf_counter() - begin


async def timed(call: Call, due: float) -> Timing:
    """Run one call; what it fails with is in its timing."""
    timing = Timing(due)
    try:
        tokens = await call(timing)
    except (BranchlineError, aiohttp.ClientError, TimeoutError) as error:
        timing.end(time.perf_counter(), failed=f"{type(error).__name__}: {error}")
    else:
        timing.end(time.perf_counter(), tokens)
    return timing
