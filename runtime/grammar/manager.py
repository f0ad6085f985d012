"""Compiles constraints beside the scheduler. Invariant: the caller never waits for a compile.

One compile for each constraint however many ask for it; results and failures are kept, the least
recently used dropped first. A compile that outlives its limit is reported as failed to those who
wait; a thread cannot be stopped, so it runs on (the engine's own limits end it) and its result is
kept when it comes. Knows no engine.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from branchline.runtime.core.protocols import TokenMatcher
from branchline.runtime.core.sampling_params import Constraint
from branchline.runtime.errors import (
    BackendError,
    BranchlineError,
    UnsupportedConstraint,
    from_wire,
    wrap,
)
from branchline.runtime.grammar.base import Bitmask, CompiledGrammar, GrammarBackend, NeedMask

Outcome = CompiledGrammar | BranchlineError
Done = Callable[[Outcome], None]


class _Flight:
    """A compile under way and who waits for it."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.waiters: list[Done] = []
        self.timer: threading.Timer | None = None


class GrammarManager:
    """Grammar cache and compile threads of one engine.

    Args:
        backend: compiles.
        workers: compile threads.
        cache_size: constraints kept.
        limit_s: seconds after which a compile counts as failed.
    """

    def __init__(
        self,
        backend: GrammarBackend,
        *,
        workers: int = 2,
        cache_size: int = 512,
        limit_s: float = 10.0,
    ) -> None:
        self.backend = backend
        self._limit_s = limit_s
        self._cache_size = cache_size
        self._cache: OrderedDict[Constraint, Outcome] = OrderedDict()
        self._flights: dict[Constraint, _Flight] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="grammar")
        self._closed = False

    def try_get(self, constraint: Constraint) -> Outcome | None:
        """The grammar, or why there is none, if that is known already."""
        with self._lock:
            outcome = self._cached(constraint)
        return None if outcome is None else _own(outcome)

    def request(self, constraint: Constraint, done: Done) -> None:
        """Have `done` called once with the grammar or the error.

        At once and on this thread when the outcome is known, else later on another thread.
        `done` must be short and must not raise.
        """
        with self._lock:
            outcome = self._cached(constraint)
            if outcome is None:
                flight = self._flights.get(constraint)
                if self._closed:
                    outcome = BackendError("the grammar manager is closed")
                elif flight is None:
                    self._start(constraint, done)
                elif time.monotonic() < flight.deadline:
                    flight.waiters.append(done)
                else:
                    outcome = self._too_late(constraint)
        if outcome is not None:
            done(_own(outcome))

    def fill_masks(self, matchers: Sequence[TokenMatcher | None], bitmask: Bitmask) -> NeedMask:
        """See `GrammarBackend.fill_masks`."""
        return self.backend.fill_masks(matchers, bitmask)

    def failure(self, matcher: TokenMatcher) -> str:
        """See `GrammarBackend.failure`."""
        return self.backend.failure(matcher)

    def close(self) -> None:
        """Take no more requests; those that wait are told. Does not wait for running compiles."""
        with self._lock:
            self._closed = True
            waiters = [done for flight in self._flights.values() for done in flight.waiters]
            for flight in self._flights.values():
                flight.waiters.clear()
                if flight.timer is not None:
                    flight.timer.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for done in waiters:
            done(BackendError("the grammar manager was closed"))

    def _cached(self, constraint: Constraint) -> Outcome | None:
        outcome = self._cache.get(constraint)
        if outcome is not None:
            self._cache.move_to_end(constraint)
        return outcome

    def _start(self, constraint: Constraint, done: Done) -> None:
        flight = _Flight(time.monotonic() + self._limit_s)
        flight.waiters.append(done)
        flight.timer = threading.Timer(self._limit_s, self._expire, (constraint, flight))
        flight.timer.daemon = True
        self._flights[constraint] = flight
        flight.timer.start()
        self._pool.submit(self._compile, constraint, flight)

    def _compile(self, constraint: Constraint, flight: _Flight) -> None:
        outcome: Outcome
        try:
            outcome = self.backend.compile(constraint)
        except Exception as error:
            outcome = wrap(error)
        with self._lock:
            del self._flights[constraint]
            self._cache[constraint] = outcome
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
            waiters, flight.waiters = flight.waiters, []
        if flight.timer is not None:
            flight.timer.cancel()
        for done in waiters:
            done(_own(outcome))

    def _expire(self, constraint: Constraint, flight: _Flight) -> None:
        with self._lock:
            waiters, flight.waiters = flight.waiters, []
        for done in waiters:
            done(self._too_late(constraint))

    def _too_late(self, constraint: Constraint) -> UnsupportedConstraint:
        return UnsupportedConstraint(
            f"the {constraint.kind} constraint took more than {self._limit_s:g} s to compile",
            value=constraint.text,
            hint="Simplify it.",
        )


def _own(outcome: Outcome) -> Outcome:
    """A copy of an error: each reader adds its own place and traceback to it."""
    return from_wire(outcome.to_wire()) if isinstance(outcome, BranchlineError) else outcome
