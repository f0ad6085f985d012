"""How a reader sleeps until a value is there: in a greenlet, or in a plain thread.

A program that shares its thread with others runs in a `ProgramGreenlet`: waiting switches to the
hub of that thread, which resumes whoever can go on. Anyone else blocks the thread. Async programs
await a future instead (`Run.arrival`). Invariant: only a hub switches into a program, so a program
that starts, wakes or ends another never runs it on its own stack.
"""

from __future__ import annotations

import contextvars
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from queue import SimpleQueue
from typing import Protocol

from greenlet import GreenletExit, getcurrent, greenlet


class Sleeper(Protocol):
    """One wait."""

    def wake(self) -> None:
        """End the wait; any thread, never blocks."""

    def sleep(self) -> None:
        """Wait until woken; may return early."""


class ProgramGreenlet(greenlet):  # type: ignore[misc]  # greenlet has no types
    """A program that shares its thread; `hub` resumes it."""

    def __init__(self, body: Callable[[], None], hub: Hub) -> None:
        super().__init__(body, hub.main)
        self.hub = hub
        self.gr_context = contextvars.copy_context()


class Hub:
    """Runs many greenlets in the thread that created it, one at a time."""

    def __init__(self) -> None:
        self.main = getcurrent()
        self.event_loop = running_loop()
        self._inbox: SimpleQueue[ProgramGreenlet] = SimpleQueue()

    def wake(self, program: ProgramGreenlet) -> None:
        """Resume `program` (or start it) soon; any thread."""
        self._inbox.put(program)

    def turn(self) -> None:
        """Wait for one greenlet that can go on, and let it."""
        program = self._inbox.get()
        if not program.dead:
            program.switch()


class LoopHub(Hub):
    """Runs greenlets as callbacks of the running event loop."""

    def wake(self, program: ProgramGreenlet) -> None:
        loop = self.event_loop
        if loop is running_loop():
            loop.call_soon(self._resume, program)  # type: ignore[attr-defined]
            return
        call_threadsafe(loop, self._resume, program)

    def turn(self) -> None:
        """The event loop takes the turns."""

    @staticmethod
    def _resume(program: ProgramGreenlet) -> None:
        if not program.dead:
            program.parent = getcurrent()
            program.switch()


class _GreenletSleeper:
    def __init__(self, program: ProgramGreenlet) -> None:
        self._program = program

    def wake(self) -> None:
        self._program.hub.wake(self._program)

    def sleep(self) -> None:
        self._program.parent.switch()


class _ThreadSleeper:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self) -> None:
        self._lock.release()

    def sleep(self) -> None:
        self._lock.acquire()


def sleeper() -> Sleeper:
    """The way to wait here."""
    program = current_program()
    return _ThreadSleeper() if program is None else _GreenletSleeper(program)


def current_program() -> ProgramGreenlet | None:
    """The greenlet this code runs in, when its hub can take over from here.

    A program that has started an event loop of its own inside its greenlet must not switch away
    while that loop runs: other programs would see it as theirs.
    """
    program = getcurrent()
    if isinstance(program, ProgramGreenlet) and program.hub.event_loop is running_loop():
        return program
    return None


def running_loop() -> object | None:
    """The event loop that runs in this thread, without importing asyncio."""
    asyncio = sys.modules.get("asyncio")
    return None if asyncio is None else asyncio._get_running_loop()


class Group:
    """Jobs run as greenlets, at most `limit` at a time, started in order.

    Jobs must keep their own results and errors; what one raises ends the group (see `run`).
    """

    def __init__(self, jobs: Iterable[Callable[[], None]], limit: int) -> None:
        self._jobs = iter(jobs)
        self._limit = limit
        self._active: dict[int, ProgramGreenlet] = {}
        self._failure: BaseException | None = None
        self._over = False
        self._owner: ProgramGreenlet | None = None

    def run(self) -> None:
        """Return when all jobs have run; the first exception stops the others and is raised."""
        self._owner = current_program()
        hub = Hub() if self._owner is None else self._owner.hub
        try:
            self._fill(hub)
            while not self._over:
                if self._owner is None:
                    hub.turn()
                else:
                    self._owner.parent.switch()
        finally:
            self._stop()
        if self._failure is not None:
            raise self._failure

    def _fill(self, hub: Hub) -> None:
        """Start jobs up to the limit; note when everything is over."""
        while len(self._active) < self._limit and self._failure is None:
            job = next(self._jobs, None)
            if job is None:
                break
            program = ProgramGreenlet(partial(self._body, job, hub), hub)
            self._active[id(program)] = program
            hub.wake(program)
        if self._failure is not None or not self._active:
            self._over = True
            if self._owner is not None:
                hub.wake(self._owner)

    def _body(self, job: Callable[[], None], hub: Hub) -> None:
        try:
            job()
        except GreenletExit:
            pass  # stopped by the group
        except BaseException as error:
            self._failure = self._failure or error
        finally:
            self._active.pop(id(getcurrent()), None)
            if not self._over:
                self._fill(hub)

    def _stop(self) -> None:
        """End what still runs: each program leaves by `GreenletExit` and cleans up."""
        self._over = True
        for program in list(self._active.values()):
            stop(program)
        self._active.clear()


def stop(program: ProgramGreenlet) -> None:
    """End a greenlet of this thread, started or not; its `finally` clauses run."""
    if not program.dead:
        program.parent = getcurrent()
        program.throw(GreenletExit)


def call_threadsafe(loop: object, callback: Callable[..., object], *args: object) -> None:
    """Like the loop's own; a loop that is closed has nobody left to tell."""
    try:
        loop.call_soon_threadsafe(callback, *args)  # type: ignore[attr-defined]
    except RuntimeError:
        if not loop.is_closed():  # type: ignore[attr-defined]
            raise
