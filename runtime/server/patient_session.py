"""Sessions of programs for an event loop, which must not wait while a long text is tokenized.

Invariants: a session takes its ops in the order in which they were sent; nothing here waits for a
tokenizer. Short texts go the straight way, since a thread would cost more than they do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from branchline.runtime.errors import wrap
from branchline.runtime.programs.protocol import (
    AppendText,
    Cancel,
    Close,
    Closed,
    Drop,
    Event,
    Fork,
    Join,
    Op,
    OpenProgram,
    Select,
    Session,
    Sink,
)

SHORT_CHARS = 2000
"""Texts that one handing over may tokenize on the event loop."""

Open = Callable[[OpenProgram, Sink], Session]


def open_patiently(opens: Open, program: OpenProgram, sink: Sink) -> PatientSession:
    """A program that `opens` starts, as a `PatientSession`; called on the event loop."""
    return PatientSession(opens(program, sink), sink)


class PatientSession:
    """See `protocol.Session`; all calls come from one event loop.

    Args:
        session: does the work; it tokenizes where it is called.
        sink: gets `Closed` with the error where ops that had to wait cannot be taken.
    """

    def __init__(self, session: Session, sink: Callable[[list[Event]], None]) -> None:
        self._session = session
        self._sink = sink
        self._open: dict[int, int] = {}  # lane -> characters that its next op will tokenize
        self._waiting: deque[list[Op]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._abandoned = False

    def send(self, ops: list[Op]) -> None:
        """See `Session.send`."""
        long = self._count(ops)
        if self._task is None and not long:
            self._session.send(ops)
            return
        self._waiting.append(ops)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._hand_over())

    def abandon(self) -> None:
        """See `Session.abandon`; a text that is being tokenized is not waited for."""
        self._abandoned = True
        self._waiting.clear()
        if self._task is None:
            self._session.abandon()

    async def _hand_over(self) -> None:
        try:
            while self._waiting:
                await asyncio.to_thread(self._session.send, self._waiting.popleft())
        except Exception as error:
            self._waiting.clear()
            self._session.abandon()
            if not self._abandoned:
                self._sink([Closed(error=wrap(error).to_wire())])
        finally:
            self._task = None
            if self._abandoned:
                self._session.abandon()

    def _count(self, ops: list[Op]) -> bool:
        """Whether handing over `ops` tokenizes a long text: texts of a lane up to its next op."""
        due = 0
        for op in ops:
            if isinstance(op, AppendText):
                chars = sum(len(part) for part in op.parts if isinstance(part, str))
                self._open[op.lane] = self._open.get(op.lane, 0) + chars
                continue
            if isinstance(op, Select):
                due += sum(map(len, op.choices))
            due += sum(self._open.pop(lane, 0) for lane in self._ended_by(op))
        return due > SHORT_CHARS

    def _ended_by(self, op: Op) -> tuple[int, ...]:
        """Lanes whose texts `op` has tokenized (a few more do no harm)."""
        if isinstance(op, Close):
            return tuple(self._open)
        if isinstance(op, Drop | Cancel):
            return op.lanes
        if isinstance(op, Fork | Join):
            return (op.lane, *op.children)
        return (op.lane,)
