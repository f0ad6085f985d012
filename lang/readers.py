"""Who waits for what in one run: conditions, and how to wake those whose condition came true.

Invariant: a condition that is true stays true, and a reader is woken exactly once. Conditions are
looked at under the run's lock, so they must not take it. Knows nothing of events.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from branchline.lang import waiting

Ready = Callable[[], bool]
Wake = Callable[[], None]


class Readers:
    """Sleeping readers.

    Args:
        lock: the run's.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self._sleeping: list[tuple[Ready, Wake]] = []

    def wait(self, ready: Ready) -> None:
        """Sleep in this greenlet or thread until `ready()`."""
        sleeper = waiting.sleeper()
        entry = (ready, sleeper.wake)
        if not self._enter(entry):
            return
        try:
            while not ready():
                sleeper.sleep()
        finally:
            self._leave(entry)

    async def arrival(self, ready: Ready) -> None:
        """Sleep on the running event loop until `ready()`."""
        import asyncio

        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()

        def set_result() -> None:
            if not future.done():
                future.set_result(None)

        entry = (ready, lambda: waiting.call_threadsafe(loop, set_result))
        if not self._enter(entry):
            return
        try:
            await future
        finally:
            self._leave(entry)

    def notify(self) -> None:
        """Wake whose condition came true by something other than an event."""
        with self._lock:
            woken = self.due()
        for wake in woken:
            wake()

    def due(self) -> list[Wake]:
        """Take out those that can go on; the caller holds the lock, and calls them without it."""
        if not self._sleeping:
            return []
        due = [entry for entry in self._sleeping if entry[0]()]
        if due:
            self._sleeping = [entry for entry in self._sleeping if entry not in due]
        return [wake for _, wake in due]

    def _enter(self, entry: tuple[Ready, Wake]) -> bool:
        with self._lock:
            if entry[0]():
                return False
            self._sleeping.append(entry)
            return True

    def _leave(self, entry: tuple[Ready, Wake]) -> None:
        with self._lock:
            if entry in self._sleeping:
                self._sleeping.remove(entry)
