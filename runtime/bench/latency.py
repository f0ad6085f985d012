"""What is said of many requests: arrivals, times of one, percentiles of all, growth over time.

Arithmetic alone: knows no clock, no network and no engine. All times are seconds.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from branchline.runtime.bench.measure import share

PARTS = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def poisson_times(rate: float, count: int, seed: int) -> list[float]:
    """Arrival times of `count` requests at `rate` a second on average; the same for one seed.

    The gaps are independent and exponential: requests arrive whether or not others are answered.
    """
    rng = random.Random(seed)
    times: list[float] = []
    now = 0.0
    for _ in range(count):
        now += rng.expovariate(rate)
        times.append(now)
    return times


@dataclass(slots=True)
class Timing:
    """One request as its client saw it.

    Attributes:
        begin_s: when it was due, whether or not it could be sent then.
        first_s: when its first text came; the end if none came.
        gaps: seconds between one piece of text and the next of the same output.
        tokens: of the output, as the server counts them.
        failed: why it has no answer; "" = it has one.
    """

    begin_s: float
    first_s: float = 0.0
    end_s: float = 0.0
    gaps: list[float] = field(default_factory=list)
    tokens: int = 0
    failed: str = ""
    _last: dict[object, float] = field(default_factory=dict)

    def mark(self, now: float, of: object = None) -> None:
        """A piece of text came. of: which output, where a request has several."""
        if not self._last:
            self.first_s = now
        elif of in self._last:
            self.gaps.append(now - self._last[of])
        self._last[of] = now

    def end(self, now: float, tokens: int = 0, failed: str = "") -> None:
        """Nothing more comes."""
        self.end_s, self.tokens, self.failed = now, tokens, failed
        if not self._last:
            self.first_s = now


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """`PARTS` of the values by name; 0 of none."""
    return {name: share(values, part) for name, part in PARTS.items()}


def summary(timings: Sequence[Timing], wall_s: float) -> dict[str, Any]:
    """Figures of one run. A request that failed counts as failed and in nothing else."""
    good = [one for one in timings if not one.failed]
    tokens = sum(one.tokens for one in good)
    found: dict[str, Any] = {
        "requests": len(timings),
        "failed": len(timings) - len(good),
        "wall_s": wall_s,
        "out_tok": tokens,
        "tok_per_s": tokens / wall_s,
        "req_per_s": len(good) / wall_s,
    }
    kinds = {
        "ttft_s": [one.first_s - one.begin_s for one in good],
        "itl_s": [gap for one in good for gap in one.gaps],
        "e2e_s": [one.end_s - one.begin_s for one in good],
    }
    for kind, values in kinds.items():
        found |= {f"{kind}_{name}": value for name, value in percentiles(values).items()}
    return found


def over_runs(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, and for those of `SPREAD` all runs as `all_NAME`.

    Requests and failures are summed: one that failed in any run is not hidden by a median.
    """
    found: dict[str, Any] = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        if name in ("requests", "failed"):
            found[name] = sum(values)
        else:
            found[name] = statistics.median(values)
        if name in SPREAD:
            found[f"all_{name}"] = values
    return found


SPREAD = ("tok_per_s", "ttft_s_p50", "itl_s_p50", "itl_s_p99", "e2e_s_p50")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Growth of y for each unit of x, by least squares; 0 of fewer than two different x."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*points, strict=True)).slope
