"""Timing of repeats. Knows nothing about what is timed.

Wall time says what a user waits; CPU time of the process (all threads) is what to compare between
runs of one thread on a shared machine, since it hardly moves with the load of others.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Sample:
    """One timed run: wall and CPU seconds, and what the run returned."""

    wall_s: float
    cpu_s: float
    result: Any


@dataclass(slots=True)
class Series:
    """The repeats of one thing.

    Attributes:
        extra: figures beside the time; they go into the JSON line as they are.
    """

    name: str
    samples: list[Sample] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def wall(self) -> list[float]:
        """Wall seconds of each run."""
        return [sample.wall_s for sample in self.samples]

    @property
    def median_s(self) -> float:
        """Median wall seconds."""
        return statistics.median(self.wall)

    @property
    def median_cpu_s(self) -> float:
        """Median CPU seconds of the process."""
        return statistics.median(sample.cpu_s for sample in self.samples)

    @property
    def spread(self) -> float:
        """Of the wall seconds; see `spread`."""
        return spread(self.wall)


def timed(run: Callable[[], Any]) -> Sample:
    """Run once."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = run()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu, result)


def repeat(
    name: str,
    run: Callable[[int], Any],
    *,
    repeats: int,
    before: Callable[[], Any] = lambda: None,
) -> Series:
    """One warm-up run, then `repeats` timed ones.

    Args:
        run: called with the round's number; 0 is the warm-up.
        before: called before each run, not timed (e.g. to flush caches).
    """
    before()
    run(0)
    series = Series(name)
    for round_ in range(1, repeats + 1):
        before()
        series.samples.append(timed(partial(run, round_)))
    return series


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median; 0 where the median is 0."""
    middle = statistics.median(values)
    return (max(values) - min(values)) / middle if middle else 0.0


def share(values: Sequence[float], part: float) -> float:
    """The value that so large a part of all does not exceed; 0 of none."""
    ordered = sorted(values) or [0.0]
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in 10^6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def json_line(**fields: Any) -> str:
    """One JSON document on one line; floats rounded to four places."""
    rounded = {
        key: [round(v, 4) for v in value]
        if isinstance(value, list) and all(isinstance(v, float) for v in value)
        else round(value, 4)
        if isinstance(value, float)
        else value
        for key, value in fields.items()
    }
    return msgspec.json.encode(rounded).decode()
