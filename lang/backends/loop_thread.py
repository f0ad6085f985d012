"""A thread with an event loop of its own, for backends at the other end of a socket.

So a program may run in a plain thread, a greenlet or inside a running event loop: it never waits on
the loop its sockets live on. The thread starts when it is needed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from branchline.lang.errors import BackendError

T = TypeVar("T")


class LoopThread:
    """See module.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Run `callback` on the loop, soon, in order; any thread. BackendError once stopped."""
        self._running().call_soon_threadsafe(callback)

    def start(self, job: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine as a task of the loop; any thread."""
        return asyncio.run_coroutine_threadsafe(job, self._running())

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it in this thread."""
        return self.start(job).result()

    def stop(
        self,
        last: Callable[[], Coroutine[Any, Any, None]] | None = None,
        *,
        wait: bool = True,
    ) -> None:
        """Run `last`, cancel what runs, end the thread. May be called again.

        Args:
            wait: for the thread's end; not when collecting garbage, which may hold any lock.
        """
        with self._lock:
            self._stopped = True
            loop, thread, self._loop = self._loop, self._thread, None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_end(loop, last), loop)
        if wait and thread is not threading.current_thread():
            thread.join()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._stopped:
                raise BackendError("the backend is closed", hint="Make a new one.")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_run, args=(self._loop,), name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end(
    loop: asyncio.AbstractEventLoop, last: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    try:
        if last is not None:
            await last()
        others = [task for task in asyncio.all_tasks(loop) if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*others, return_exceptions=True)
    finally:
        loop.stop()
