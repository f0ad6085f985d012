"""Runs programs on an engine: one loop thread, any number of programs, no thread of its own.

Invariant: all state of programs is touched on the engine's loop thread only; other threads put
prepared ops into one inbox and wake the loop once for a burst. Events of a program that arise in
one slice of the loop reach its sink in one call. A program that breaks, or whose sink breaks, ends
alone. Knows nothing about models, schedulers or Python functions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice

import msgspec

from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.errors import BackendError, BranchlineError, Cancelled, ProgramError, wrap
from branchline.runtime.programs.graph import RequestGraph
from branchline.runtime.programs.intake import Prepared
from branchline.runtime.programs.program import RunningProgram
from branchline.runtime.programs.protocol import OpenProgram, Sink
from branchline.runtime.programs.session import ProgramSession
from branchline.runtime.programs.text import TextEncoder, TurnTexts
from branchline.runtime.programs.view import MAX_VIEWS, ProgramView, view_of

logger = logging.getLogger(__name__)

SLICE_S = 0.005


class ExecutorStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the executor was made.

    Attributes:
        tokens_tokenized: ids the tokenizer has produced; a program costs only its new text.
        tokens_reused: ids of texts found in the cache of texts.
        wakes: how often the loop was woken.
    """

    programs_opened: int
    programs_open: int
    tokens_tokenized: int
    tokens_reused: int
    wakes: int


class Executor:
    """Programs on one engine.

    Args:
        port: the engine's side.
        clock: monotonic seconds, the clock of request deadlines.
        slice_s: seconds of new ops taken at once before the engine gets its turn again.
    """

    def __init__(
        self,
        port: EnginePort,
        clock: Callable[[], float] = time.monotonic,
        slice_s: float = SLICE_S,
    ) -> None:
        self._slice_s = slice_s
        self.port = port
        self.clock = clock
        self.encoder = TextEncoder(port.tokenizer)
        self.turns = TurnTexts(port.turns, self.encoder)
        self._programs: dict[str, RunningProgram] = {}
        # Re-entrant: collecting garbage while it is held may abandon a program.
        self._lock = threading.RLock()
        self._inbox: deque[tuple[RunningProgram, list[Prepared] | None]] = deque()
        self._awake = False
        self._closed = False
        self._dirty: list[RunningProgram] = []
        self._opened = 0
        self._wakes = 0

    # ---- any thread

    def open(self, program: OpenProgram, sink: Sink) -> ProgramSession:
        """Start a program. `sink` is called on the loop thread.

        Raises:
            ProgramError: the id is in use.
            BackendError: the executor is closed.
        """
        running = RunningProgram(self, program, sink)
        with self._lock:
            self._check_open()
            if program.program_id in self._programs:
                raise ProgramError(
                    "a program with this id is running",
                    value=program.program_id,
                    program=program.name,
                    hint="Give every running program an id of its own.",
                )
            self._programs[program.program_id] = running
            self._opened += 1
        return ProgramSession(running, self.post)

    def run_graph(
        self,
        graph: RequestGraph,
        arguments: Mapping[str, object] | None,
        program: OpenProgram,
        sink: Sink,
    ) -> ProgramSession:
        """Run a graph without its Python function. ProgramError: see `RequestGraph.ops`."""
        ops = graph.ops(arguments)
        session = self.open(program, sink)
        session.send(ops)
        return session

    def stats(self) -> ExecutorStats:
        """Counts so far."""
        return ExecutorStats(
            programs_opened=self._opened,
            programs_open=len(self._programs),
            tokens_tokenized=self.encoder.tokens_tokenized,
            tokens_reused=self.encoder.tokens_cached,
            wakes=self._wakes,
        )

    def close(self, error: BranchlineError | None = None) -> None:
        """End every program with `error` (default: `Cancelled`); take nothing more.

        What was sent before is taken first. Close the executor before its engine.
        """
        with self._lock:
            if self._closed:
                return
            self._closed = True
        try:
            self.port.call_soon(lambda: self._end_all(error))
        except BackendError:  # the engine is closed: its loop thread runs nothing more
            self._end_all(error)

    def post(self, program: RunningProgram, ops: list[Prepared] | None) -> None:
        """Hand ops of a program to the loop; None = it was abandoned.

        Raises:
            BackendError: the executor or the engine is closed.
        """
        if ops is not None and not ops:
            return
        with self._lock:
            if ops is not None:
                self._check_open()
            self._inbox.append((program, ops))
            waking = self._set_awake()
        if waking:
            try:
                self._call_pump()
            except BackendError:
                if ops is not None:  # leaving a program whose engine is closed is no failure
                    raise

    def wake(self) -> None:
        """Have the loop send events, once, soon. Called on the loop thread."""
        with self._lock:
            waking = self._set_awake()
        if waking:
            try:
                self._call_pump()
            except BackendError:  # the engine is closing: these are the last events
                self._pump()

    def _set_awake(self) -> bool:
        waking = not self._awake
        self._awake = True
        self._wakes += waking
        return waking

    def _call_pump(self) -> None:
        try:
            self.port.call_soon(self._pump)
        except BackendError:
            self._awake = False
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(
                "the executor of programs is closed", hint="Make a new Engine.", retryable=True
            )

    # ---- loop thread

    def running(self, on_done: Callable[[list[ProgramView]], None]) -> None:
        """Tell the oldest programs that run, a bounded number of them."""
        with self._lock:
            programs = list(islice(self._programs.values(), MAX_VIEWS))
        now = self.clock()
        on_done([view_of(program, now) for program in programs])

    def mark_dirty(self, program: RunningProgram) -> None:
        """The program has events to send."""
        self._dirty.append(program)

    def forget(self, program: RunningProgram) -> None:
        """The program is over; its id may be used again."""
        with self._lock:
            if self._programs.get(program.opened.program_id) is program:
                del self._programs[program.opened.program_id]

    def crash(self, program: RunningProgram, error: Exception) -> None:
        """A bug met by one program ends that program."""
        logger.error("program %s ended by an internal error", program.name, exc_info=error)
        try:
            program.crash(wrap(error))
        except Exception:
            logger.exception("program %s could not be ended in order", program.name)
            program.over = True
            self.forget(program)

    def _pump(self) -> None:
        with self._lock:
            self._awake = False
        inbox = self._inbox
        end = time.perf_counter() + self._slice_s
        for _ in range(len(inbox)):
            program, ops = inbox.popleft()
            try:
                if ops is None or program.abandoned:
                    program.discard()
                elif not program.over:
                    program.accept(ops)
            except Exception as error:
                self.crash(program, error)
            if inbox and time.perf_counter() >= end:
                self.wake()
                break
        self._flush()

    def _flush(self) -> None:
        dirty, self._dirty = self._dirty, []
        for program in dirty:
            events, program.outbox = program.outbox, []
            if program.abandoned:
                continue
            try:
                program.sink(events)
            except Exception:
                logger.exception("program %s abandoned: its sink failed", program.name)
                program.abandoned = True
                program.discard()

    def _end_all(self, error: BranchlineError | None) -> None:
        while self._inbox:
            self._pump()
        for program in list(self._programs.values()):
            program.crash(error or Cancelled("the engine was closed", hint="Start a new engine."))
        self._flush()
