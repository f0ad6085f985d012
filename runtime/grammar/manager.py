"""Compiles constraints beside the scheduler. Invariant: the caller never waits for a compile.

One compile for each constraint however many ask for it; results and failures are kept, within a
number of bytes, the least recently used dropped first. What may take long has a lane of its own, so
that it never delays what is surely short. A compile that outlives its limit is reported as failed
to those who wait; if it runs in this process it cannot be stopped (the engine's own limits end it)
and its result is kept when it comes. Knows no engine.
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
    QueueFull,
    UnsupportedConstraint,
    from_wire,
    wrap,
)
from branchline.runtime.grammar.base import Bitmask, CompiledGrammar, GrammarBackend, NeedMask
from branchline.runtime.grammar.limits import DEFAULT_LIMITS, is_cheap

Outcome = CompiledGrammar | BranchlineError
Done = Callable[[Outcome], None]

MAX_WAITING = 256
"""Compiles that may wait or run at once."""

_ENTRY_BYTES = 1024


class _Flight:
    """A compile that waits or runs, and who waits for it."""

    def __init__(self) -> None:
        self.deadline = float("inf")
        self.waiters: list[Done] = []
        self.timer: threading.Timer | None = None


class GrammarManager:
    """Grammar cache and compile threads of one engine.

    Args:
        backend: compiles; closed with the manager.
        workers: compile threads of each of the two lanes.
        cache_bytes: grammars and failures kept, as counted by `CompiledGrammar.memory_bytes`.
        limit_s: seconds after which a compile counts as failed, from when it begins.
    """

    def __init__(
        self,
        backend: GrammarBackend,
        *,
        workers: int = 2,
        cache_bytes: int = DEFAULT_LIMITS.cache_bytes,
        limit_s: float = 10.0,
    ) -> None:
        self.backend = backend
        self._limit_s = limit_s
        self._cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cache: OrderedDict[Constraint, Outcome] = OrderedDict()
        self._flights: dict[Constraint, _Flight] = {}
        self._lock = threading.Lock()
        self._short = ThreadPoolExecutor(workers, thread_name_prefix="grammar-short")
        self._long = ThreadPoolExecutor(workers, thread_name_prefix="grammar-long")
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
                elif flight is None and len(self._flights) >= MAX_WAITING:
                    outcome = QueueFull("too many constraints wait to be compiled")
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
        for pool in (self._short, self._long):
            pool.shutdown(wait=False, cancel_futures=True)
        self.backend.close()
        for done in waiters:
            done(BackendError("the grammar manager was closed"))

    def stats(self) -> dict[str, int]:
        """How much is kept and how much is under way."""
        with self._lock:
            return {
                "cached": len(self._cache),
                "cached_bytes": self._cached_bytes,
                "compiling": len(self._flights),
            }

    def _cached(self, constraint: Constraint) -> Outcome | None:
        outcome = self._cache.get(constraint)
        if outcome is not None:
            self._cache.move_to_end(constraint)
        return outcome

    def _keep(self, constraint: Constraint, outcome: Outcome) -> None:
        self._cache[constraint] = outcome
        self._cached_bytes += _size(constraint, outcome)
        while self._cached_bytes > self._cache_bytes and self._cache:
            self._cached_bytes -= _size(*self._cache.popitem(last=False))

    def _start(self, constraint: Constraint, done: Done) -> None:
        flight = self._flights[constraint] = _Flight()
        flight.waiters.append(done)
        pool = self._short if is_cheap(constraint) else self._long
        pool.submit(self._compile, constraint, flight)

    def _compile(self, constraint: Constraint, flight: _Flight) -> None:
        timer = threading.Timer(self._limit_s, self._expire, (constraint, flight))
        timer.daemon = True
        with self._lock:
            if self._closed:
                return
            flight.deadline = time.monotonic() + self._limit_s
            flight.timer = timer
        timer.start()
        outcome: Outcome
        try:
            outcome = self.backend.compile(constraint)
        except Exception as error:
            outcome = wrap(error)
        timer.cancel()
        with self._lock:
            del self._flights[constraint]
            if not (isinstance(outcome, BranchlineError) and outcome.retryable):
                self._keep(constraint, outcome)
            waiters, flight.waiters = flight.waiters, []
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


def _size(constraint: Constraint, outcome: Outcome) -> int:
    held = 0 if isinstance(outcome, BranchlineError) else outcome.memory_bytes
    return _ENTRY_BYTES + 4 * len(constraint.text) + held


def _own(outcome: Outcome) -> Outcome:
    """A copy of an error: each reader adds its own place and traceback to it."""
    return from_wire(outcome.to_wire()) if isinstance(outcome, BranchlineError) else outcome
