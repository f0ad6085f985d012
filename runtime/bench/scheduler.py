"""`branchline bench scheduler`: what the CPU side of a step costs beside the model.

Two questions: which share of a decoding step at batch 16 goes to intake, planning, masks and
commit; and what one waiting request costs when 100, 1,000 or 10,000 wait that share a prefix (flat
= the order of the queue is kept, not computed anew). Reads the counters of `Engine.info()`.
"""

from __future__ import annotations

import statistics
import sys
from functools import partial
from typing import Any, TextIO

from branchline.runtime.bench.environment import header
from branchline.runtime.bench.measure import json_line, repeat, timed
from branchline.runtime.bench.report import Column, table
from branchline.runtime.bench.workloads import WORKLOADS, shared_prompts
from branchline.runtime.core.sampling_params import SamplingParams
from branchline.runtime.engine import Engine

PHASES = ("intake_s", "plan_s", "mask_s", "commit_s")
SHARED_TOKENS = 64
OWN_TOKENS = 2


def counters(engine: Engine) -> dict[str, float]:
    """The scheduler's cumulative counters."""
    return {key: float(value) for key, value in engine.info()["scheduler"].items()}


def _since(engine: Engine, before: dict[str, float]) -> dict[str, float]:
    return {key: value - before[key] for key, value in counters(engine).items()}


def step_overhead(engine: Engine, repeats: int) -> dict[str, Any]:
    """Phases of a step while 16 sequences decode; seconds and shares of the wall time."""
    workload = WORKLOADS["batch16"]

    def run(round_: int) -> dict[str, float]:
        ids, lengths = workload.make(round_)
        sampling = SamplingParams(temperature=0.0, max_tokens=lengths[0], ignore_eos=True)
        before = counters(engine)
        engine.generate(ids, sampling)
        return _since(engine, before)

    series = repeat("batch16", run, repeats=repeats, before=engine.flush_cache)
    shares = [
        sum(sample.result[phase] for phase in PHASES) / sample.wall_s for sample in series.samples
    ]
    steps = statistics.median(sample.result["steps"] for sample in series.samples)
    phases = {
        phase: statistics.median(sample.result[phase] for sample in series.samples)
        for phase in (*PHASES, "wait_s")
    }
    return {
        "s": series.median_s,
        "all_s": series.wall,
        "steps": steps,
        "step_ms": 1e3 * series.median_s / steps,
        "overhead": statistics.median(shares),
        **phases,
    }


def queue_cost(engine: Engine, queued: int, repeats: int) -> dict[str, Any]:
    """CPU-side seconds per request when `queued` requests arrive together on one prefix."""
    sampling = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    costs, walls = [], []
    for round_ in range(repeats):
        engine.flush_cache()
        ids = shared_prompts(queued, SHARED_TOKENS, OWN_TOKENS, (500 + round_, 600 + round_))
        before = counters(engine)
        sample = timed(partial(engine.generate, ids, sampling))
        spent = _since(engine, before)
        costs.append(1e6 * sum(spent[phase] for phase in PHASES) / queued)
        walls.append(sample.wall_s)
    return {
        "queued": queued,
        "s": statistics.median(walls),
        "all_s": walls,
        "us_per_request": statistics.median(costs),
    }


def scheduler(
    settings: dict[str, Any],
    *,
    queued: list[int],
    repeats: int = 3,
    stream: TextIO = sys.stdout,
) -> list[dict[str, Any]]:
    """Run both measurements and print tables and JSON lines."""
    engine = Engine(**settings)
    try:
        info = engine.info()
        print(header(info), file=stream)
        found = [{"work": "step_overhead", **step_overhead(engine, repeats)}]
        for count in queued:
            found.append({"work": "queue_cost", **queue_cost(engine, count, repeats)})
            print(f"  {count} queued done", file=sys.stderr)
    finally:
        engine.close()
    step = found[0]
    rows = [[name, f"{1e3 * step[name] / step['steps']:.3f}"] for name in (*PHASES, "wait_s")]
    rows.append(["step", f"{step['step_ms']:.3f}"])
    rows.append(["overhead", f"{step['overhead']:.1%}"])
    title = f"a step at batch 16, median of {repeats}"
    table(title, (Column("phase"), Column("ms per step", right=True)), rows, stream)
    rows = [[str(f["queued"]), f"{f['us_per_request']:.1f}", f"{f['s']:.2f}"] for f in found[1:]]
    columns = (
        Column("queued", right=True),
        Column("µs per request (CPU side)", right=True),
        Column("wall s", right=True),
    )
    table(f"requests that share {SHARED_TOKENS} tokens", columns, rows, stream)
    for item in found:
        print(json_line(model=str(info.get("model")), **item), file=stream)
    return found
