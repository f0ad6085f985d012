"""A window of values: what is old or too much is gone."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from branchline.runtime.observability.metrics import Metrics
from branchline.runtime.observability.window import Window


@given(values=st.lists(st.integers(0, 20), min_size=1), parts=st.integers(0, 128))
def test_a_quantile_is_the_smallest_value_with_enough_not_above(
    values: list[int], parts: int
) -> None:
    window = Window(clock=lambda: 0.0)
    for value in values:
        window.add(value)
    [found] = window.quantiles([parts / 128])
    wanted = Fraction(parts, 128) * len(values)
    assert found == min(v for v in values if sum(w <= v for w in values) >= wanted)


def test_what_is_older_than_a_minute_does_not_count() -> None:
    now = 0.0
    window = Window(seconds=60.0, clock=lambda: now)
    assert window.quantiles([0.5]) == []
    window.add(9.0)
    now = 30.0
    window.add(1.0)
    assert window.quantiles([0.0, 1.0]) == [1.0, 9.0]
    now = 61.0
    assert window.quantiles([0.0, 1.0]) == [1.0, 1.0]
    now = 91.0
    assert window.quantiles([0.5]) == []


def test_only_the_newest_values_are_kept() -> None:
    window = Window(most=3, clock=lambda: 0.0)
    for value in range(10):
        window.add(value)
    assert window.quantiles([0.0, 1.0]) == [7.0, 9.0]


def test_a_full_window_takes_no_more_memory_than_a_new_one() -> None:
    tracemalloc.start()
    window = Window(most=1000)
    new, _ = tracemalloc.get_traced_memory()
    for value in range(5000):
        window.add(value / 7)
    full, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert full - new < 1000


def test_histograms_remember_the_last_minute() -> None:
    metrics = Metrics("tiny", dict)
    for value in (0.1, 0.3):
        metrics.observe("time_to_first_token_seconds", value, adapter="base")
    assert metrics.recent("time_to_first_token_seconds").quantiles([1.0]) == [0.3]
    assert metrics.recent("inter_token_latency_seconds").quantiles([1.0]) == []
