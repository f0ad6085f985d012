"""Ops on their way to the backend: in order, in lists, never waiting.

Handing over may tokenize, so it happens outside the run's lock: events are not held up by it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from branchline.lang.errors import BackendError
from branchline.runtime.programs.protocol import Close, Drop, Op

if TYPE_CHECKING:
    from branchline.runtime.programs.protocol import Session


def _let_go(session: Session) -> None:
    """Abandon a session; a backend that is closed has forgotten it already."""
    with suppress(BackendError):
        session.abandon()


class Outbox:
    """The sending side of one run.

    Args:
        owner: the run; when it is collected, the session is abandoned.
        lock: the run's.
    """

    def __init__(self, owner: object, session: Session, lock: threading.Lock) -> None:
        self.closing = False
        self._session = session
        self._lock = lock
        self._sending = threading.Lock()
        self._pending: list[Op] = []
        self._dropped: deque[int] = deque()
        self._hold = 0
        self._abandon = weakref.finalize(owner, _let_go, session)
        self._abandon.atexit = False

    @property
    def open(self) -> bool:
        """False once the program was abandoned."""
        return bool(self._abandon.alive)

    def put(self, *ops: Op) -> None:
        """Queue ops; the caller holds the lock."""
        self._pending += ops

    def drop(self, lane: int) -> None:
        """Queue the end of a lane. Takes no lock: the garbage collector may call it at any time."""
        self._dropped.append(lane)

    def close(self) -> None:
        """Queue the end of the program; the caller holds the lock."""
        self._pending.append(Close())
        self.closing = True

    def flush(self) -> None:
        """Hand over what is queued. If another thread is doing so, it takes this along."""
        while self._pending and not self._hold and self._sending.acquire(blocking=False):
            try:
                with self._lock:
                    ops = self._take()
                if ops and self.open:
                    self._session.send(ops)
            finally:
                self._sending.release()

    @contextmanager
    def batched(self) -> Iterator[None]:
        """Hand over what is queued inside as one list."""
        self._hold += 1
        try:
            yield
        finally:
            self._hold -= 1
            self.flush()

    def abandon(self) -> None:
        """Forget what is queued and tell the backend that the program is gone."""
        self.closing = True
        self._pending = []
        self._abandon()

    def _take(self) -> list[Op]:
        ops, self._pending = self._pending, []
        if self._dropped and not self.closing:
            ops.append(Drop(tuple(self._dropped.popleft() for _ in range(len(self._dropped)))))
        return ops
