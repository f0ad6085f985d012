"""The mock's own thread ends with the mock."""

from __future__ import annotations

import gc
import threading
import time

import branchline as bl


@bl.function
def program(s: bl.State) -> str:
    s += bl.gen("x")
    return s["x"]


def test_a_mock_that_nobody_holds_ends_its_thread() -> None:
    def names() -> int:
        return sum(thread.name == "branchline-mock" for thread in threading.enumerate())

    gc.collect()
    before = names()
    assert program.run(backend=bl.Mock("a")).result == "a"
    gc.collect()
    deadline = time.monotonic() + 3
    while names() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert names() <= before
