"""One thread that reads sockets and runs what is posted to it, in turns.

Invariant: handlers, posted functions, timers and the end-of-turn function all run on that thread,
one at a time; one that raises is logged and the loop goes on. Knows nothing of what messages mean.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from branchline.runtime.errors import BackendError
from branchline.runtime.ipc.sockets import Inbox

logger = logging.getLogger(__name__)


class SocketLoop:
    """Reads any number of inboxes.

    Args:
        name: of the thread.
        after_turn: called at the end of each turn (to send what the turn has gathered).
    """

    def __init__(self, name: str, after_turn: Callable[[], None] = lambda: None) -> None:
        self.turns = 0
        self.after_turn = after_turn
        self._posted: deque[Callable[[], None]] = deque()
        self._handlers: dict[Any, tuple[Inbox[Any], Callable[[Any], None]]] = {}
        self._timers: list[list[Any]] = []
        self._poller = zmq.Poller()
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        self._poller.register(self._read_end, zmq.POLLIN)
        self._awake = False
        self._closed = False
        # Re-entrant: collecting garbage while it is held may post something.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self.run, name=name, daemon=True)

    # ---- any thread

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop thread, in order; never blocks.

        Raises:
            BackendError: the loop is closed.
        """
        with self._lock:
            if self._closed:
                raise BackendError("the engine is closed", hint="Make a new Engine.")
            self._posted.append(fn)
            self._wake()

    @property
    def on_thread(self) -> bool:
        """True when called from the loop thread."""
        return threading.current_thread() is self._thread

    @property
    def started(self) -> bool:
        """The thread has been started."""
        return self._thread.ident is not None

    def start(self) -> None:
        """Run in a thread of its own."""
        self._thread.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """End the loop after what was posted; inboxes are not closed. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._wake()
        if self._thread.is_alive() and not self.on_thread:
            self._thread.join(timeout_s)

    # ---- loop thread, or before it runs

    def watch(self, inbox: Inbox[Any], handle: Callable[[Any], None]) -> None:
        """Give each message of `inbox` to `handle`."""
        self._handlers[inbox.socket] = (inbox, handle)
        self._poller.register(inbox.socket, zmq.POLLIN)

    def unwatch(self, inbox: Inbox[Any]) -> None:
        """Read `inbox` no more, and close it."""
        if self._handlers.pop(inbox.socket, None) is not None:
            self._poller.unregister(inbox.socket)
        inbox.close()

    def every(self, period_s: float, fn: Callable[[], None]) -> None:
        """Call `fn` about every `period_s` seconds."""
        self._timers.append([time.monotonic() + period_s, period_s, fn])

    def run(self) -> None:
        """Turn until closed."""
        try:
            while not self._closed:
                self._turn()
            self._run_posted()
            self._safely(self.after_turn)
        finally:
            os.close(self._read_end)
            with self._lock:
                os.close(self._write_end)
                self._write_end = -1

    def _turn(self) -> None:
        self.turns += 1
        for source, _ in self._poller.poll(self._timeout_ms()):
            if source == self._read_end:
                self._clear_wake()
                continue
            if source not in self._handlers:
                continue  # another inbox's handler has closed this one
            inbox, handle = self._handlers[source]
            for message in inbox.receive():
                self._safely(handle, message)
                if source not in self._handlers:
                    break  # a handler has closed this inbox
        self._run_posted()
        now = time.monotonic()
        for timer in self._timers:
            if timer[0] <= now:
                timer[0] = now + timer[1]
                self._safely(timer[2])
        self._safely(self.after_turn)

    def _timeout_ms(self) -> int | None:
        if self._posted:
            return 0
        if not self._timers:
            return None
        first = min(timer[0] for timer in self._timers)
        return max(0, int((first - time.monotonic()) * 1000) + 1)

    def _run_posted(self) -> None:
        for _ in range(len(self._posted)):
            self._safely(self._posted.popleft())

    def _wake(self) -> None:
        if not self._awake and self._write_end >= 0:
            self._awake = True
            os.write(self._write_end, b"\0")

    def _clear_wake(self) -> None:
        with self._lock:
            self._awake = False
            os.read(self._read_end, 64)

    @staticmethod
    def _safely(fn: Callable[..., None], *arguments: Any) -> None:
        try:
            fn(*arguments)
        except Exception:
            logger.exception("a function of the socket loop failed")
