"""The loop thread: order, failures, deadlines, closing."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from branchline.runtime.errors import BackendError, BranchlineError
from branchline.runtime.scheduler.loop import Loop
from tests.support.waiting import until


class Steps:
    """Counts its turns; `work` says how many more have something to do."""

    def __init__(self) -> None:
        self.work = 0
        self.turns = 0
        self.audits = 0
        self.deadline: float | None = None
        self.broken = False
        self.failures: list[BranchlineError] = []

    @property
    def next_deadline(self) -> float | None:
        return self.deadline

    def step(self) -> bool:
        self.turns += 1
        if self.broken:
            self.broken = False
            raise RuntimeError("a bug")
        self.work -= 1
        return self.work > 0

    def audit(self) -> int:
        self.audits += 1
        return 0

    def fail_all(self, error: BranchlineError) -> None:
        self.failures.append(error)


def test_posted_functions_run_in_order_on_one_thread_and_failures_do_not_stop_it() -> None:
    loop = Loop(Steps())
    loop.start()
    seen: list[int] = []
    threads: set[int] = set()

    def note(i: int) -> None:
        threads.add(threading.get_ident())
        seen.append(i)
        if i == 5:
            raise ValueError("posted by a careless caller")

    for i in range(100):
        loop.call_soon(lambda i=i: note(i))  # type: ignore[misc]
    until(lambda: len(seen) == 100)
    assert seen == list(range(100)) and len(threads) == 1
    loop.close()


def test_an_idle_loop_sleeps_and_audits() -> None:
    steps = Steps()
    loop = Loop(steps)
    loop.start()
    until(lambda: steps.audits == 1)
    turns = steps.turns
    time.sleep(0.1)
    assert steps.turns - turns <= 2, "an idle loop must not spin"
    steps.work = 50
    loop.call_soon(lambda: None)
    until(lambda: steps.turns - turns >= 50)
    loop.close()


def test_a_deadline_wakes_an_idle_loop() -> None:
    steps = Steps()
    loop = Loop(steps)
    loop.start()
    until(lambda: steps.audits == 1)  # it sleeps without end now
    deadline = time.monotonic() + 0.3
    ends: list[float] = []
    step = steps.step

    def ending() -> bool:
        if steps.deadline is not None and time.monotonic() >= steps.deadline:
            ends.append(time.monotonic())
            steps.deadline = None
        return step()

    def set_deadline() -> None:
        steps.step = ending  # type: ignore[method-assign]
        steps.deadline = deadline

    turns = steps.turns
    loop.call_soon(set_deadline)
    until(lambda: ends)
    woken = steps.turns - turns
    loop.close()
    assert len(ends) == 1
    assert 0.0 <= ends[0] - deadline < 2.0, "it woke for it, and not before"
    assert woken <= 4, "it slept until then"


def test_a_deadline_during_the_audit_is_not_missed() -> None:
    steps = Steps()
    steps.deadline = time.monotonic() + 0.05
    waits: list[float | None] = []

    class Wake(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return super().wait(timeout)

    loop = Loop(steps)
    loop._wake = Wake()
    loop.start()
    until(lambda: waits)
    loop.close()
    assert waits[0] is not None and waits[0] <= 0.05


@pytest.mark.parametrize("far", [1e10, 1e300, float("inf")])
def test_a_deadline_that_no_clock_reaches_does_not_end_the_loop(far: float) -> None:
    steps = Steps()
    steps.deadline = far
    loop = Loop(steps)
    loop.start()
    until(lambda: steps.audits == 1)
    for count in range(1, 4):  # it sleeps until the deadline, and wakes for each
        time.sleep(0.02)
        seen: list[int] = []
        loop.call_soon(lambda seen=seen: seen.append(1))  # type: ignore[misc]
        until(lambda seen=seen: seen == [1])  # type: ignore[misc]
        assert steps.turns > count
    loop.close()


def test_a_failing_step_ends_the_requests_and_not_the_loop() -> None:
    steps = Steps()
    loop = Loop(steps)
    loop.start()
    steps.broken = True
    loop.call_soon(lambda: None)
    until(lambda: len(steps.failures) == 1)
    assert "a bug" in str(steps.failures[0]) and steps.failures[0].retryable
    seen: list[int] = []
    loop.call_soon(lambda: seen.append(1))
    until(lambda: seen == [1])
    loop.close()


def test_after_close_everything_is_told_and_nothing_is_taken() -> None:
    steps = Steps()
    loop = Loop(steps)
    loop.start()
    ran: list[int] = []
    loop.call_soon(lambda: ran.append(1))
    loop.close()
    loop.close()
    assert ran == [1]
    assert "closed" in str(steps.failures[-1])
    with pytest.raises(BackendError, match="closed"):
        loop.call_soon(lambda: None)


def test_closing_is_quick_however_busy_the_loop_is() -> None:
    for _ in range(200):
        steps = Steps()
        steps.deadline = time.monotonic()  # an idle loop that wakes all the time
        loop = Loop(steps)
        loop.start()
        start = time.monotonic()
        loop.close()
        assert time.monotonic() - start < 5.0


def test_what_was_there_before_a_loop_is_not_collected_while_it_runs() -> None:
    gc.unfreeze()
    loop = Loop(Steps())
    loop.start()
    until(lambda: gc.get_freeze_count() > 1000)
    assert not any(one is loop for one in gc.get_objects())
    loop.close()
    until(lambda: gc.get_freeze_count() == 0)
    assert any(one is loop for one in gc.get_objects())
