"""Watches the processes of an engine, and replaces what dies or hangs.

    STARTING ──a token was generated──> READY ──a process died──> RESTARTING ──> READY …
        └── it cannot start ──> FAILED <── too often ──┘               stop ──> CLOSED

Invariant: whatever happens to a process, the port keeps its promise to its callers. READY means
that a token has been generated through all processes. A scheduler that dies takes its detokenizer
along, since the text of its requests is over; a detokenizer that dies leaves the scheduler and its
cache alone. Everything here runs on the loop thread. Imports no torch.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

from branchline.runtime.config.server import ServerSection
from branchline.runtime.core.outputs import GenerateResult, Output
from branchline.runtime.errors import BackendError, BranchlineError, from_wire, wrap
from branchline.runtime.ipc.child import Child
from branchline.runtime.ipc.messages import (
    Answer,
    Attach,
    Beat,
    DetokenizerLoaded,
    SchedulerLoaded,
    Started,
    StartFailed,
    Stop,
    ToPort,
    ToScheduler,
)
from branchline.runtime.ipc.socket_loop import SocketLoop
from branchline.runtime.ipc.sockets import Outlet
from branchline.runtime.launch.lives import Births, Life
from branchline.runtime.launch.remote_port import RemotePort

logger = logging.getLogger(__name__)

TICK_S = 0.05
STOP_S = 10.0
RESTART_WINDOW_S = 600.0

State = Enum("State", "STARTING READY RESTARTING FAILED CLOSED")


class Supervisor:
    """See module.

    Args:
        loop: turns here; the port's own.
        settings: flat settings of the engine.
        settled: called when a token has been generated for the first time, and when the engine is
            given up (with why).

    Attributes:
        failure: why the engine was given up.
        restarts: processes that were replaced.

    Raises:
        BackendError: no folder for the sockets can be made.
    """

    def __init__(
        self,
        port: RemotePort,
        loop: SocketLoop,
        settings: dict[str, Any],
        server: ServerSection,
        settled: Callable[[BranchlineError | None], None],
    ) -> None:
        self.state = State.STARTING
        self.restarts = 0
        self.failure: BranchlineError | None = None
        self._port = port
        self._server = server
        self._settled = settled
        self._births = Births(loop, settings, server, self._hear)
        self._scheduler: Life | None = None
        self._detokenizer: Life | None = None
        self._outlet: Outlet[ToScheduler] | None = None
        self._leaving: list[Child] = []
        self._deaths: deque[float] = deque()
        self._begun_at = self._ticked_at = time.monotonic()
        loop.every(TICK_S, self._tick)

    def describe(self) -> dict[str, Any]:
        """State of the processes, plain data; any thread."""
        lives = [life for life in (self._scheduler, self._detokenizer) if life is not None]
        return {
            "processes": {
                "state": self.state.name.lower(),
                "restarts": self.restarts,
                "corrupt_messages": sum(life.corrupt for life in lives),
                **{f"{life.role}_pid": life.child.pid for life in lives},
            }
        }

    def stop(self) -> None:
        """End every request with an error, then the processes: scheduler, detokenizer."""
        self.state = State.CLOSED
        closed = BackendError("the engine was closed", retryable=True, hint="Start a new one.")
        self._port.fail_all(self.failure or closed)
        if self._scheduler is not None and self._outlet is not None:
            self._outlet.send([Stop()])
            if not self._scheduler.child.wait(STOP_S):
                logger.warning("the scheduler did not stop within %g s; it is killed", STOP_S)
        self._end_both()
        for child in self._leaving:
            child.wait(STOP_S)

    def close(self) -> None:
        """Remove the sockets, and what was written for the processes, when the loop has ended."""
        self._births.close()
        self._port.close()

    # ---- starting

    def _start_missing(self) -> None:
        """Start what is not there, once what it replaces is gone with all its memory."""
        if self._leaving:
            return
        self._begun_at = time.monotonic()
        births = self._births
        try:
            text_at = births.endpoint("detokenizer")
            if self._scheduler is None:
                here = births.endpoint("scheduler")
                self._scheduler = births.start("scheduler", here, text_at)
            self._detokenizer = births.start("detokenizer", text_at, self._scheduler.endpoint)
        except Exception as error:  # no more processes, files or memory
            self._give_up(wrap(error))

    def _loaded(self, life: Life) -> None:
        """Once both have loaded, have a token generated."""
        life.begins()
        scheduler, detokenizer = self._scheduler, self._detokenizer
        if scheduler is None or detokenizer is None:
            return
        if scheduler.loaded and detokenizer.loaded:
            self._port.send(Attach(detokenizer.endpoint))
            self._port.probe(lambda output: self._probed(detokenizer, output))

    def _probed(self, detokenizer: Life, output: Output) -> None:
        if not isinstance(output, GenerateResult) or detokenizer is not self._detokenizer:
            return
        if output.error is not None:
            self._scheduler_died(from_wire(output.error))
            return
        first = self.state is State.STARTING
        self.state = State.READY
        logger.info("ready after %.1f s", time.monotonic() - self._begun_at)
        self._port.resume()
        if first:
            self._settled(None)

    # ---- hearing

    def _hear(self, life: Life, message: ToPort) -> None:
        life.heard(message)
        if isinstance(message, Started):
            self._port.started(message)
        elif isinstance(message, Answer):
            self._port.answer(message)
        elif isinstance(message, Beat):
            self._port.counters = message.counters or self._port.counters
        elif isinstance(message, SchedulerLoaded):
            self._outlet = self._births.outlet(life)
            self._port.connect(self._outlet, message.bounds, message.facts, message.adapters)
            self._loaded(life)
        elif isinstance(message, DetokenizerLoaded):
            self._loaded(life)
        elif isinstance(message, StartFailed):
            life.why = from_wire(message.error)
        else:
            self._port.output(message)

    # ---- watching

    def _tick(self) -> None:
        now = time.monotonic()
        stood_still = now - self._ticked_at > 1.0  # this process: others may have spoken
        self._ticked_at = now
        self._leaving = [child for child in self._leaving if not child.ended]
        if self.state in (State.FAILED, State.CLOSED):
            return
        if self._scheduler is None or self._detokenizer is None:
            self._start_missing()
            return
        for life in (self._scheduler, self._detokenizer):
            if stood_still:
                life.excuse()
            problem = self._problem(life)
            if problem is None:
                continue
            if life is self._scheduler:
                self._scheduler_died(problem)
            elif life is self._detokenizer:
                self._detokenizer_died(problem)
            return  # else its last words have ended both

    def _problem(self, life: Life) -> BranchlineError | None:
        if life.child.ended:
            for message in life.inbox.receive():  # its last words
                self._hear(life, message)
        limit = self._server.start_timeout_s
        if self.state is not State.READY and time.monotonic() - self._begun_at > limit:
            return BackendError(f"the engine generated no token within {limit:g} s of its start")
        return life.problem(self._server.hang_timeout_s)

    def _scheduler_died(self, error: BranchlineError) -> None:
        self._end_both()
        if not self._fatal(error):
            self._port.scheduler_lost(_lost(error))

    def _detokenizer_died(self, error: BranchlineError) -> None:
        if self._scheduler is None or not self._scheduler.loaded:
            self._scheduler_died(error)
            return
        if self._detokenizer is not None:
            self._end(self._detokenizer)
            self._detokenizer = None
        if not self._fatal(error):
            self._port.detokenizer_lost(_lost(error))

    def _fatal(self, error: BranchlineError) -> bool:
        """Count a death; True when it was one too many, or nothing has ever worked."""
        logger.error("%s", error)
        now = time.monotonic()
        self._deaths.append(now)
        while now - self._deaths[0] > RESTART_WINDOW_S:
            self._deaths.popleft()
        if self.state is State.STARTING or len(self._deaths) > self._server.max_restarts:
            self._give_up(error)
            return True
        self.state = State.RESTARTING
        self.restarts += 1
        return False

    def _give_up(self, error: BranchlineError) -> None:
        self._end_both()
        self.failure = error
        self.state = State.FAILED
        self._port.fail_all(_lost(error))
        self._settled(error)

    def _end_both(self) -> None:
        for life in (self._scheduler, self._detokenizer):
            if life is not None:
                self._end(life)
        self._scheduler = self._detokenizer = None
        if self._outlet is not None:
            self._outlet.close()
            self._outlet = None

    def _end(self, life: Life) -> None:
        self._births.end(life)
        self._leaving.append(life.child)


def _lost(error: BranchlineError) -> BackendError:
    """What callers hear whose request was lost with a process."""
    return BackendError(error.message, retryable=True, hint="Send the request again.")
