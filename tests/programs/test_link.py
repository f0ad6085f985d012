"""The client's end of the wire keeps its promises whatever runs between its instructions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from branchline.lang.backends.link import Link
from tests.programs.helpers import text
from tests.programs.wires import Wires


class Between:
    """Calls `act` before the instruction number `moment` of a function, in the same thread."""

    def __init__(self, function: Any, moment: int, act: Callable[[], None]) -> None:
        self.code, self.left, self.act = function.__code__, moment, act

    def __call__(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is not self.code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                self.act()
        return self

    def run(self, job: Callable[[], bytes | None]) -> bytes | None:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            return job()
        finally:
            sys.settrace(before)


def test_programs_may_be_abandoned_between_any_two_instructions_of_collecting() -> None:
    """As the garbage collector does, in the thread that holds the lock."""
    for moment in range(1, 1_000):
        wires = Wires()
        wires.connect()
        heard = [wires.program(f"p{n}").session for n in range(3)]
        wires.pump()
        for session in heard:
            session.send([text(0, "x")])
        gone = [wires.program("unheard").session, heard[0]]
        between = Between(Link.collect, moment, lambda gone=gone: [s.abandon() for s in gone])  # type: ignore[misc]
        frame = between.run(wires.link.collect)
        if frame is not None:
            wires.up.append(frame)
        wires.pump()
        assert all(wires.engine[f"p{n}"].ops == [text(0, "x")] for n in (1, 2))
        if between.left > 0:  # it has fewer instructions than that
            return
    raise AssertionError("collecting does not end")
