"""Programs that are watched: counts, times, spans. The executor does the work.

Invariant: a program that was opened is counted as ended exactly once.
"""

from __future__ import annotations

import threading
import time

from branchline.runtime.errors import BranchlineError
from branchline.runtime.observability.metrics import Metrics
from branchline.runtime.observability.tracing import Tracer
from branchline.runtime.programs.executor import Executor
from branchline.runtime.programs.protocol import Closed, Event, Op, OpenProgram, Session, Sink


class ObservedPrograms:
    """Opens programs on an executor.

    Args:
        executor: runs them.
        metrics: fed as they end.
        tracer: gets a span for each; None = no traces.
    """

    def __init__(self, executor: Executor, metrics: Metrics, tracer: Tracer | None = None) -> None:
        self._executor = executor
        self._metrics = metrics
        self._tracer = tracer

    def open(self, program: OpenProgram, sink: Sink) -> Session:
        """See `Executor.open`."""
        watch = _Watch(program, sink, self._metrics, self._tracer)
        watch.opened()  # first, since its end may come before `open` returns
        try:
            session = self._executor.open(program, watch.take)
        except BranchlineError as error:
            watch.ended("refused", type(error).__name__)
            raise
        return _Session(session, watch)


class _Session:
    """A session whose abandoning ends the watch."""

    def __init__(self, session: Session, watch: _Watch) -> None:
        self._session = session
        self._watch = watch

    def send(self, ops: list[Op]) -> None:
        """See `Session.send`."""
        self._session.send(ops)

    def abandon(self) -> None:
        """See `Session.abandon`."""
        self._session.abandon()
        self._watch.ended("abandoned", "abandoned")


class _Watch:
    """One program, on its way."""

    def __init__(
        self, program: OpenProgram, sink: Sink, metrics: Metrics, tracer: Tracer | None
    ) -> None:
        self._program = program
        self._sink = sink
        self._metrics = metrics
        self._tracer = tracer
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._over = False

    def opened(self) -> None:
        """It runs."""
        self._metrics.change("programs_running", 1)
        if self._tracer is not None:
            self._tracer.program_opened(self._program.program_id, self._program.name)

    def take(self, events: list[Event]) -> None:
        """Look for the end, then pass on."""
        for event in events:
            if isinstance(event, Closed):
                kind = "" if event.error is None else str(event.error.get("code", "error"))
                self.ended("failed" if kind else "finished", kind)
        self._sink(events)

    def ended(self, outcome: str, error: str) -> None:
        """Count the end, once, whichever thread comes first."""
        with self._lock:
            if self._over:
                return
            self._over = True
        self._metrics.change("programs_running", -1)
        self._metrics.count("num_programs_total", outcome=outcome)
        seconds = time.monotonic() - self._started
        self._metrics.observe("program_latency_seconds", seconds)
        if self._tracer is not None:
            self._tracer.program_closed(self._program.program_id, error)
