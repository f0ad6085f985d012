"""The arithmetic of the serving benchmark, against its definitions."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.bench.latency import (
    PARTS,
    Timing,
    over_runs,
    percentiles,
    poisson_times,
    slope,
    summary,
)
from branchline.runtime.bench.measure import spread

VALUES = st.lists(st.floats(0, 1e6), min_size=1, max_size=300)


@given(VALUES)
def test_a_percentile_is_a_value_that_so_many_do_not_exceed(values: list[float]) -> None:
    for name, value in percentiles(values).items():
        part = PARTS[name]
        assert value in values
        assert sum(other <= value for other in values) >= part * len(values)
        assert sum(other < value for other in values) <= part * len(values)


def test_arrivals_are_those_of_the_seed_and_of_the_rate() -> None:
    times = poisson_times(20.0, 20_000, 3)
    assert times == poisson_times(20.0, 20_000, 3)
    assert times != poisson_times(20.0, 20_000, 4)
    assert poisson_times(20.0, 10, 3) == times[:10]
    gaps = [later - earlier for earlier, later in zip([0.0, *times], times, strict=False)]
    assert min(gaps) > 0
    mean = statistics.mean(gaps)
    assert mean == pytest.approx(1 / 20, rel=0.03)
    # Exponential gaps: as wide as their mean, and 1/e of them longer than it.
    assert statistics.stdev(gaps) == pytest.approx(mean, rel=0.05)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.02)


def test_first_text_and_gaps_are_of_one_output_each() -> None:
    timing = Timing(10.0)
    timing.mark(11.0, "a")
    timing.mark(11.5, "b")
    timing.mark(12.0, "a")
    timing.mark(14.5, "b")
    timing.end(15.0, 4)
    assert timing.first_s == 11.0
    assert timing.gaps == [1.0, 3.0]
    silent = Timing(1.0)
    silent.end(3.0, 2)
    assert silent.first_s == 3.0, "without text, the end is the first that is seen"


def test_a_failed_request_counts_as_failed_and_in_nothing_else() -> None:
    good, bad = Timing(0.0), Timing(0.0)
    good.mark(1.0)
    good.mark(3.0)
    good.end(4.0, 8)
    bad.mark(100.0)
    bad.end(200.0, failed="gone")
    found = summary([good, bad], 4.0)
    assert (found["requests"], found["failed"]) == (2, 1)
    assert (found["tok_per_s"], found["req_per_s"]) == (2.0, 0.25)
    assert (found["ttft_s_p99"], found["itl_s_p50"], found["e2e_s_p90"]) == (1.0, 2.0, 4.0)


def test_runs_join_to_medians_and_failures_add_up() -> None:
    runs = [
        {"requests": 4, "failed": failed, "tok_per_s": rate, "wall_s": rate}
        for failed, rate in ((0, 1.0), (1, 9.0), (0, 2.0))
    ]
    assert over_runs(runs) == {
        "requests": 12,
        "failed": 1,
        "tok_per_s": 2.0,
        "all_tok_per_s": [1.0, 9.0, 2.0],
        "wall_s": 2.0,
    }
    assert spread([1.0, 9.0, 2.0]) == 4.0
    assert spread([0.0, 0.0]) == 0.0


@given(st.floats(-5, 5), st.floats(-100, 100), st.integers(2, 50))
def test_the_slope_of_a_line_is_found(rate: float, start: float, count: int) -> None:
    assert slope([(x, start + rate * x) for x in range(count)]) == pytest.approx(rate, abs=1e-6)


def test_one_moment_has_no_slope() -> None:
    assert slope([]) == slope([(1.0, 2.0)]) == slope([(1.0, 2.0), (1.0, 3.0)]) == 0.0
