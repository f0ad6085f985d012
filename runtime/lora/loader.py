"""The thread that reads adapters and brings them to the device, so that the loop never waits.

Invariant: jobs run in order, one at a time; what `put` was given ends with one call of its `done`,
posted to the loop thread, with what the job returned or raised. Once the engine is closed nobody is
told.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from branchline.runtime.errors import BackendError, BranchlineError, wrap
from branchline.runtime.grammar.turns import short_turns

logger = logging.getLogger(__name__)

T = TypeVar("T")
Start = Callable[[Callable[[], None], str], threading.Thread]


def start_thread(main: Callable[[], None], name: str) -> threading.Thread:
    """A started daemon thread."""
    thread = threading.Thread(target=main, name=name, daemon=True)
    thread.start()
    return thread


class Loader:
    """One thread, started by the first job.

    Args:
        call_soon: posts to the loop thread; raises `BackendError` once the loop is closed.
        start: makes and starts the thread.
    """

    def __init__(
        self, call_soon: Callable[[Callable[[], None]], None], start: Start = start_thread
    ) -> None:
        self._call_soon = call_soon
        self._start = start
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, job: Callable[[], T], done: Callable[[T | BranchlineError], None]) -> None:
        """Run `job` soon, then `done` on the loop thread. All calls come from one thread."""
        if self._thread is None:
            self._thread = self._start(self._run, "branchline-adapters")

        def run() -> None:
            result: T | BranchlineError
            try:
                with short_turns():
                    result = job()
            except Exception as error:  # delivered by `done`
                if not isinstance(error, BranchlineError):
                    logger.exception("loading an adapter failed")
                result = wrap(error)
            self._tell(lambda: done(result))

        self._jobs.put(run)

    def wait_for(self, job: Callable[[], T]) -> T:
        """What `job` returns or raises, for a caller that may wait. It runs here as long as there
        is no thread, else on that one in its turn: what jobs use is one thread's at a time."""
        if self._thread is None:
            return job()
        found: Future[T] = Future()

        def run() -> None:
            try:
                found.set_result(job())
            except Exception as error:  # raised where it is waited for
                found.set_exception(error)

        self._jobs.put(run)
        return found.result()

    def _tell(self, fn: Callable[[], None]) -> None:
        try:
            self._call_soon(fn)
        except BackendError:
            logger.debug("an adapter was loaded after the engine had been closed")

    def close(self) -> None:
        """End the thread after the job it has; later ones are not run."""
        if self._thread is None:
            return
        while True:
            try:
                self._jobs.get_nowait()
            except queue.Empty:
                break
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()


def nothing(_: Any) -> None:
    """A `done` for jobs whose end nobody waits for."""
