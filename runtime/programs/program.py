"""One open program: its lanes, what they wait for, and the events it gets.

Invariant: `pending` counts the steps that are not done; the program is over when it is 0 after
`Close`, and then exactly one `Closed` is emitted. Everything runs on the loop
thread. A step may end inside the call that starts it (engines may answer at once), so lanes
are run from one flat queue and never recursively.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from branchline.runtime.core.outputs import RequestMeta
from branchline.runtime.core.protocols import EnginePort
from branchline.runtime.errors import (
    BranchlineError,
    Cancelled,
    DeadlineExceeded,
)
from branchline.runtime.programs import openings
from branchline.runtime.programs.finish import finish_run
from branchline.runtime.programs.intake import LaneOp, Prepared
from branchline.runtime.programs.lane import Lane
from branchline.runtime.programs.lane_table import LaneTable
from branchline.runtime.programs.protocol import (
    AppendText,
    CallMade,
    Cancel,
    Close,
    Closed,
    Drop,
    Event,
    Fork,
    Join,
    NodeFailed,
    NodeStats,
    OpenProgram,
    ReasoningDelta,
    Sink,
    TextDelta,
    VarRef,
)
from branchline.runtime.programs.runs import GenerateRun, Run, SelectRun
from branchline.runtime.programs.steps import finish_wait, run_step, value_name
from branchline.runtime.programs.text import TextEncoder, TurnTexts
from branchline.runtime.programs.waits import Broken, JoinWait, Mark, RefWait, Wait

if TYPE_CHECKING:
    from branchline.runtime.programs.executor import Executor


class RunningProgram:
    """Loop-thread state of one program.

    Attributes:
        outbox: events the sink has not had.
        started: when it was opened, of the executor's clock.
        abandoned: nobody listens any more; may be set by any thread.
        over: failed or abandoned; takes nothing more.
    """

    def __init__(self, executor: Executor, program: OpenProgram, sink: Sink) -> None:
        self.opened = program
        self.name = program.name or program.program_id
        self.sink = sink
        self.port: EnginePort = executor.port
        self.encoder: TextEncoder = executor.encoder
        self.turns: TurnTexts = executor.turns
        self.outbox: list[Event] = []
        self.abandoned = False
        self.over = False
        self._executor = executor
        self.started = executor.clock()
        deadline = program.deadline_s
        self._deadline = None if deadline is None else self.started + deadline
        self.lanes = LaneTable(program.program_id)
        self._ready: deque[Lane] = deque()
        self._running = False
        self._pending = 0
        self._closing = False
        self._finished = False
        self._error: dict[str, Any] | None = None
        self._stats: list[NodeStats] = []

    # ---- loop thread: ops

    def accept(self, ops: list[Prepared]) -> None:
        """Take prepared ops in order and run what can run."""
        for op in ops:
            if isinstance(op, Cancel):
                self._cancel(op)
            elif isinstance(op, Drop):
                self._drop(op)
            elif isinstance(op, Close):
                self._closing = True
                for lane in list(self.lanes):
                    self._advance(lane)
            else:
                self._enqueue(op)
        self._finish_if_done()

    def run_ended(self, run: Run) -> None:
        """All final outputs of a run are there; submit the lane's next node at once."""
        lane = run.lane
        if self.over or lane.waiting is not run:
            return
        try:
            lane.waiting = None
            finish_run(self, lane, run)
            self._pending -= 1
            self._advance(lane)
            self._finish_if_done()
        except Exception as error:
            self._executor.crash(self, error)
        self._executor.wake()

    def _enqueue(self, op: Any) -> None:
        lane = self.lanes.get(op.lane)
        if lane is None or lane.dropped:
            self._refuse(op)
            return
        step: LaneOp = op
        if isinstance(op, Fork):
            taken = self.lanes.register(op)
            step = op if taken is None else Broken(op.lane, op.node, taken)
        elif isinstance(op, Join):
            step = JoinWait(op)
            self._depend(step, lane, op.children)
        elif isinstance(op, AppendText):
            others = {part.lane for part in op.parts if isinstance(part, VarRef)} - {op.lane}
            if others:
                step = RefWait(op)
                self._depend(step, lane, tuple(others))
        self._pending += 1
        openings.put(lane, step)
        self._advance(lane)

    def _depend(self, wait: Wait, owner: Lane, others: tuple[int, ...]) -> None:
        for lane_id in others:
            lane = self.lanes.get(lane_id)
            if lane is None or lane is owner or lane.dropped:
                wait.error = self.lanes.unknown(lane_id).to_wire()
                continue
            wait.remaining += 1
            self._pending += 1
            lane.queue.append(Mark(lane_id, wait))
            self._advance(lane)

    def _refuse(self, op: Any) -> None:
        wire = self.lanes.unknown(op.lane).to_wire()
        self._error = self._error or wire
        name = value_name(op) or ""
        self.emit(NodeFailed(lane=op.lane, node=op.node, name=name, error=wire))

    def _drop(self, op: Drop) -> None:
        for lane_id in op.lanes:
            lane = self.lanes.get(lane_id)
            if lane is not None:
                lane.dropped = True
                self._advance(lane)

    def _cancel(self, op: Cancel) -> None:
        for lane_id in op.lanes:
            lane = self.lanes.get(lane_id)
            if lane is None or lane.error is not None:
                continue
            lane.error = Cancelled(op.reason, program=self.name).to_wire()
            lane.pending = []
            self._release(lane)
            waiting = lane.waiting
            if isinstance(waiting, (GenerateRun, SelectRun)):
                self._abort(waiting)
            elif waiting is not None:
                lane.waiting = None
                if isinstance(waiting, (JoinWait, RefWait)):
                    self._pending -= 1
                    if isinstance(waiting, JoinWait):
                        self.emit_failure(lane, waiting.node, "")
                self._advance(lane)

    # ---- loop thread: running lanes

    def make_ready(self, lane: Lane) -> None:
        """Run the lane when the current step is over."""
        self._ready.append(lane)

    def insert(self, lane: Lane, steps: Sequence[LaneOp]) -> None:
        """Have the lane run these steps before all that are queued."""
        self._pending += len(steps)
        lane.queue.extendleft(reversed(steps))

    def wake_waiter(self, wait: Wait) -> None:
        """A wait has nothing left to wait for."""
        lane = self.lanes.get(wait.lane)
        if lane is not None and lane.waiting is wait:
            finish_wait(self, lane, wait)
            self._pending -= 1
            self._ready.append(lane)

    def _advance(self, lane: Lane) -> None:
        self._ready.append(lane)
        if self._running:
            return
        self._running = True
        ready = self._ready
        try:
            while ready:
                lane = ready.popleft()
                while openings.may_run(lane, closing=self._closing):
                    if run_step(self, lane, lane.queue.popleft()):
                        self._pending -= 1
                if lane.dropped and lane.waiting is None:
                    self._forget(lane)
        finally:
            self._running = False

    def _forget(self, lane: Lane) -> None:
        self._release(lane)
        self.lanes.forget(lane)

    # ---- loop thread: what steps use

    def now(self) -> float:
        """Seconds since the program was opened."""
        return self._executor.clock() - self.started

    def deadline_after(self, seconds: float | None) -> float | None:
        """Clock value at which a node that starts now must end; DeadlineExceeded when past."""
        now = self._executor.clock()
        if self._deadline is not None and now >= self._deadline:
            raise DeadlineExceeded(
                "the program's deadline has passed",
                value=f"{self.opened.deadline_s} s",
                hint="Raise deadline_s.",
            )
        if seconds is None:
            return self._deadline
        return now + seconds if self._deadline is None else min(now + seconds, self._deadline)

    def hold(self, lane: Lane, adapter: str) -> None:
        """Keep the lane's prefix, as `adapter` has computed it, while more of the lane may come."""
        if self._closing and self._pending == 1:  # the node that ends now is the last one
            return
        lane.leased = True
        self.port.hold(lane.key, lane.ids, self.opened.namespace, adapter)

    def report(self, stats: NodeStats) -> None:
        """Send stats with the next value."""
        self._stats.append(stats)

    def take_stats(self) -> tuple[NodeStats, ...]:
        """Stats not sent yet."""
        stats, self._stats = tuple(self._stats), []
        return stats

    def emit(self, event: Event) -> None:
        """Queue an event; events of one slice of the loop reach the sink together."""
        if not self.outbox:
            self._executor.mark_dirty(self)
        self.outbox.append(event)

    def emit_delta(self, run: GenerateRun, event: TextDelta | ReasoningDelta | CallMade) -> None:
        """Queue what a running node has streamed."""
        if not self.over and run.lane.error is None:
            self.emit(event)
            self._executor.wake()

    def emit_failure(
        self, lane: Lane, node: int, name: str, text: str = "", meta: RequestMeta | None = None
    ) -> None:
        """Say that a node has no value because of the lane's error."""
        assert lane.error is not None
        failed = NodeFailed(
            lane=lane.id, node=node, name=name, error=lane.error, text=text, meta=meta
        )
        self.emit(failed)

    def fail(
        self,
        lane: Lane,
        node: int,
        name: str,
        error: BranchlineError,
        text: str = "",
        meta: RequestMeta | None = None,
    ) -> None:
        """End a lane with its first error."""
        lane.error = self._wire(error, name)
        lane.pending = []
        self._error = self._error or lane.error
        self._release(lane)
        self.emit_failure(lane, node, name, text, meta)

    # ---- loop thread: the end

    def crash(self, error: BranchlineError) -> None:
        """End the program now: whatever it waits for fails, then `Closed` follows."""
        if self.over:
            return
        wire = self._wire(error)
        self._error = self._error or wire
        for lane in self.lanes:
            lane.error = lane.error or wire
            waiting = lane.waiting
            steps: list[Any] = list(lane.queue)
            if isinstance(waiting, GenerateRun):
                steps.insert(0, waiting.op)
            elif isinstance(waiting, SelectRun):
                steps.insert(0, waiting.step)
            elif isinstance(waiting, JoinWait):
                steps.insert(0, waiting)
            for step in steps:
                if (name := value_name(step)) is not None:
                    self.emit_failure(lane, step.node, name)
        self._pending = 0
        if not self._finished:
            self._finish()
        self.discard()

    def discard(self) -> None:
        """Abort what runs, free everything, hear of nothing more."""
        self.over = True
        for lane in self.lanes:
            waiting = lane.waiting
            self._release(lane)
            if isinstance(waiting, (GenerateRun, SelectRun)):
                self._abort(waiting)
            lane.clear()
        self.lanes.clear()
        self._executor.forget(self)

    def _finish_if_done(self) -> None:
        if self._closing and self._pending == 0 and not self._finished:
            self._finish()

    def _finish(self) -> None:
        self._finished = True
        for lane in self.lanes:
            self._release(lane)
        self.emit(Closed(error=self._error, stats=self.take_stats()))
        self._executor.forget(self)

    def _wire(self, error: BranchlineError, variable: str = "") -> dict[str, Any]:
        """The error's fields with the place filled in; the error itself may be shared."""
        place = {"program": self.name, "variable": variable} if variable else {"program": self.name}
        return {**place, **error.to_wire()}

    def _release(self, lane: Lane) -> None:
        if lane.leased:
            lane.leased = False
            self.port.release(lane.key)

    def _abort(self, run: Run) -> None:
        for request_id in run.request_ids:
            self.port.abort(request_id)
