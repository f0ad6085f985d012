"""The loop thread: runs what was posted, then one step, and sleeps when there is neither.

Everything that touches the scheduler is posted here, so none of it needs a lock. Knows nothing of
what the posted functions do; one that raises is logged and the loop goes on.

While a loop runs, Python's garbage collector leaves out what was there when it began: looking
through all the modules of a model's libraries again and again stops every stream for about 0.1 s.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from branchline.runtime.errors import BackendError, BranchlineError

logger = logging.getLogger(__name__)

AUDIT_PERIOD_S = 5.0
"""An idle engine checks its memory at most this often."""
QUIET_S = 0.2
"""It is idle when it has had nothing to do for so long."""


class Steps(Protocol):
    """What the loop turns (`Scheduler`)."""

    @property
    def next_deadline(self) -> float | None: ...

    def step(self) -> bool: ...

    def audit(self) -> int: ...

    def fail_all(self, error: BranchlineError) -> None: ...


class Loop:
    """Owns the loop thread.

    Args:
        steps: turned as long as it has work.
        name: of the thread.

    Attributes:
        turns: how often it has turned.
        busy: it is not asleep; the same `turns` for long then mean that a step hangs.
    """

    def __init__(self, steps: Steps, name: str = "branchline-loop") -> None:
        self._steps = steps
        self._inbox: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._closed = False
        # Re-entrant: collecting garbage while it is held may post something.
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._audited = 0.0
        self.turns = 0
        self.busy = False

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call_soon(self, fn: Callable[[], None]) -> None:
        """Run `fn` on the loop thread, in order; callable from any thread, never blocks.

        Raises:
            BackendError: the loop is closed.
        """
        with self._lock:  # or a function could be posted after the last look at the inbox
            if self._closed:
                raise BackendError("the engine is closed", hint="Make a new Engine.")
            self._inbox.append(fn)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def on_thread(self) -> bool:
        """True when called from the loop thread."""
        return threading.current_thread() is self._thread

    def close(self, timeout_s: float = 30.0) -> None:
        """End every request with an error, then the thread. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._wake.set()
        if not self.on_thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        gc.freeze()
        try:
            self._turn()
        finally:
            gc.unfreeze()

    def _turn(self) -> None:
        while True:
            self._wake.clear()
            if self._closed:  # looked at after clearing, or the closing wake-up could be lost
                break
            self.turns += 1
            self.busy = True
            self._drain()
            try:
                busy = self._steps.step()
            except Exception as error:
                logger.exception("the scheduler's step failed")
                self._steps.fail_all(
                    BackendError(
                        f"the scheduler failed: {type(error).__name__}: {error}", retryable=True
                    )
                )
                continue
            if not busy and not self._inbox:
                self.busy = False
                self._idle()
        self._drain()
        self._steps.fail_all(
            BackendError("the engine was closed", retryable=True, hint="Make a new Engine.")
        )

    def _drain(self) -> None:
        for _ in range(len(self._inbox)):
            fn = self._inbox.popleft()
            try:
                fn()
            except Exception:
                logger.exception("a function posted to the engine's loop failed")

    def _idle(self) -> None:
        now = time.monotonic()
        deadline = self._steps.next_deadline
        timeout = None if deadline is None else max(0.0, deadline - now)
        due = now - self._audited >= AUDIT_PERIOD_S and (timeout is None or timeout > QUIET_S)
        if due and not self._wake.wait(QUIET_S):
            self._audited = now
            self._steps.audit()
            return
        self._wake.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
