"""The caller's side of an open program: tokenizes, hands over, never waits.

Any thread may use it. Holding it keeps the program's lanes readable after `Close`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.intake import Intake, Prepared
from branchline.runtime.programs.program import RunningProgram
from branchline.runtime.programs.protocol import Cancel, Close, Op, ReadLane

Post = Callable[[RunningProgram, list[Prepared] | None], None]


class ProgramSession:
    """See `protocol.Session`. Made by `Executor.open`."""

    def __init__(self, program: RunningProgram, post: Post) -> None:
        self._program = program
        self._post = post
        # Re-entrant: a collected object's finalizer may abandon this program inside `send`.
        self._lock = threading.RLock()
        self._intake = Intake(program.encoder)
        self._closed = False

    def send(self, ops: list[Op]) -> None:
        """Hand over ops; literal text is tokenized here. Ignored once abandoned or failed.

        Raises:
            ProgramError: something else than `ReadLane` or `Cancel` after `Close`, or not an op
                at all.
        """
        program = self._program
        with self._lock:
            if program.abandoned or program.over:
                return
            closed = self._closed_after(ops)
            prepared = self._intake.prepare(ops)
            self._closed = closed
            self._post(program, prepared)

    def abandon(self) -> None:
        """See `protocol.Session`. No sink call starts after this returns."""
        with self._lock:
            if not self._program.abandoned:
                self._program.abandoned = True
                self._post(self._program, None)

    def _closed_after(self, ops: list[Op]) -> bool:
        closed = self._closed
        for op in ops:
            if closed and not isinstance(op, (ReadLane, Cancel)):
                raise ProgramError(
                    "the program is closed",
                    value=type(op).__name__,
                    program=self._program.name,
                    hint="After the end lanes can only be read, or cancelled.",
                )
            closed = closed or isinstance(op, Close)
        return closed
