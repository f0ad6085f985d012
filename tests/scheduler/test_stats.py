"""Phases of few turns are timed, and stand for all."""

from __future__ import annotations

import time

import pytest

from branchline.runtime.scheduler.stats import TIMED, PhaseClock


def test_timed_turns_stand_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = 0.0, 0

    def thread_time() -> float:
        nonlocal asked
        asked += 1
        return now

    monkeypatch.setattr(time, "thread_time", thread_time)
    clock, total = PhaseClock(), 0.0
    for _ in range(10 * TIMED):
        clock.turn()
        start = clock.read()
        now += 0.25
        total += clock.read() - start
    assert total == pytest.approx(0.25 * 10 * TIMED)
    assert asked == 30
