"""Where the time of a run goes: kernels on the device, its idle time, phases of the loop thread.

Invariant: a profiled run is never one of the timed ones. Without a CUDA device only the phases are
reported. Knows nothing of what is run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, TextIO

from branchline.runtime.bench.report import Column, table
from branchline.runtime.engine import Engine

PHASES = ("intake_s", "plan_s", "launch_s", "mask_s", "commit_s", "wait_s")
TOP_KERNELS = 12


def profiled(engine: Engine, run: Callable[[], Any]) -> dict[str, Any]:
    """Run once under the profiler.

    Returns:
        wall_s; steps; seconds of each phase of the loop thread; and on a CUDA device: span_s from
        the first kernel's start to the last one's end, idle (share of it without any work on the
        device), kernels (name, count, seconds; the longest in total first).
    """
    import torch

    before = engine.info()["scheduler"]
    if not torch.cuda.is_available():
        started = time.perf_counter()
        run()
        found: dict[str, Any] = {"wall_s": time.perf_counter() - started}
    else:
        activities = [torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as profiler:
            started = time.perf_counter()
            run()
            torch.cuda.synchronize()
            wall_s = time.perf_counter() - started
        found = {"wall_s": wall_s, **_device_work(profiler)}
    after = engine.info()["scheduler"]
    return found | {name: after[name] - before[name] for name in ("steps", *PHASES)}


def _device_work(profiler: Any) -> dict[str, Any]:
    results = profiler.profiler.kineto_results
    spans: list[tuple[int, int]] = []
    counts: dict[str, int] = defaultdict(int)
    times: dict[str, int] = defaultdict(int)
    for event in results.events():
        if str(event.device_type()) != "DeviceType.CUDA":
            continue
        start, length = event.start_ns(), event.duration_ns()
        spans.append((start, start + length))
        counts[event.name()] += 1
        times[event.name()] += length
    if not spans:
        return {}
    longest = sorted(times, key=lambda name: -times[name])[:TOP_KERNELS]
    span = max(end for _, end in spans) - min(start for start, _ in spans)
    return {
        "span_s": span / 1e9,
        "idle": 1.0 - covered(spans) / span,
        "launches": len(spans),
        "kernels": [[name, counts[name], times[name] / 1e9] for name in longest],
    }


def covered(spans: list[tuple[int, int]]) -> int:
    """Length of the union of half-open spans."""
    total = end = 0
    for start, stop in sorted(spans):
        begin = max(start, end)
        if stop > begin:
            total += stop - begin
            end = stop
    return total


def show_profile(name: str, found: dict[str, Any], stream: TextIO) -> None:
    """Print one run's report."""
    steps = max(1, found["steps"])
    phases = ", ".join(f"{key[:-2]} {1e3 * found[key] / steps:.3f}" for key in PHASES)
    print(
        f"{name}: {found['steps']} steps, {found['wall_s']:.3f} s under the profiler", file=stream
    )
    print(f"  loop thread, ms a step: {phases}", file=stream)
    if "kernels" not in found:
        return
    print(
        f"  device: {found['launches']} pieces of work in {found['span_s']:.3f} s, "
        f"idle {found['idle']:.1%}",
        file=stream,
    )
    columns = (Column("kernel"), Column("count", right=True), Column("ms", right=True))
    rows = [
        [kernel[:90], str(count), f"{1e3 * seconds:.2f}"]
        for kernel, count, seconds in found["kernels"]
    ]
    table(f"{name}: device time", columns, rows, stream)
