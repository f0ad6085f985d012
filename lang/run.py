"""One run of a program: ops go out in order, events come back, readers wait for what they need.

Invariants, under `lock`: every value node that was sent has a `Slot`; a slot that is done stays as
it is; once `failure` is set, every later `emit` raises it. Events are applied on the backend's
thread, so any thread, greenlet or event loop may read. Knows nothing of expressions or names.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from branchline.lang.errors import (
    BranchlineError,
    Cancelled,
    ConstraintError,
    ProgramError,
    from_wire,
)
from branchline.lang.events import (
    ReasoningDelta,
    StreamEvent,
    TextDelta,
    ToolCall,
    VariableReady,
)
from branchline.lang.lanes import Lanes
from branchline.lang.outbox import Outbox
from branchline.lang.partials import Watch
from branchline.lang.readers import Readers, Ready
from branchline.lang.tools import Call
from branchline.lang.types import ValueType
from branchline.lang.variables import Slot
from branchline.runtime.programs import protocol
from branchline.runtime.programs.protocol import Event, NodeStats, Op, OpenProgram

if TYPE_CHECKING:
    from branchline.lang.expressions import Reference
    from branchline.runtime.programs.protocol import ProgramBackend


class _Ids:
    """Program ids: one random part a process, and a count."""

    def __init__(self) -> None:
        self._prefix = ""
        self._count = count()

    def next(self) -> str:
        """An id nobody else has."""
        self._prefix = self._prefix or os.urandom(8).hex()
        return f"{self._prefix}-{next(self._count)}"


_ids = _Ids()


class LaneRead:
    """The answer to a `ReadLane`."""

    __slots__ = ("content", "failure")

    def __init__(self) -> None:
        self.content: protocol.LaneContent | None = None
        self.failure: BranchlineError | None = None

    def ready(self) -> bool:
        """True when the answer, or the reason why there is none, is here."""
        return self.content is not None or self.failure is not None


class Run:
    """State shared by all lanes of one run.

    Args:
        name: of the program.
        backend: runs it.
        streaming: ask for text deltas and keep public events in `events`.
        asynchronous: the program is an `async def`.
        deadline_s, priority: of the whole program.

    Attributes:
        function_ended: an async program's function has returned; nothing more will be defined.
        body_ended: a program that runs in the background has come to its end.
        task: an async program's own task.
    """

    def __init__(
        self,
        name: str,
        backend: ProgramBackend,
        *,
        streaming: bool = False,
        asynchronous: bool = False,
        deadline_s: float | None = None,
        priority: int = 0,
    ) -> None:
        self.name = name
        self.backend = backend
        self.streaming = streaming
        self.asynchronous = asynchronous
        self.tracing = False
        self.lock = threading.Lock()
        self.lanes = Lanes()
        self.failure: BranchlineError | None = None
        self.closed = False
        self.function_ended = False
        self.body_ended = False
        self.task: object = None
        self.ops: list[Op] = []
        self.stats: list[NodeStats] = []
        self.slots: dict[int, Slot] = {}
        self.events: deque[StreamEvent] = deque()
        self._reads: dict[int, LaneRead] = {}
        self._nodes = count()
        self.readers = Readers(self.lock)
        program = OpenProgram(
            program_id=_ids.next(), name=name, deadline_s=deadline_s, priority=priority
        )
        self.outbox = Outbox(self, backend.open(program, _sink(self)), self.lock)

    # ---- ops

    def next_node(self) -> int:
        """A new node number."""
        return next(self._nodes)

    def progress(self) -> int:
        """A number that grows with everything that is appended or computed."""
        return len(self.ops) + sum(slot.done for slot in self.slots.values())

    def new_lanes(self, parent: int, size: int, *, keep_errors: bool) -> tuple[int, ...]:
        """Numbers of `size` lanes that fork from `parent` as one group."""
        with self.lock:
            return self.lanes.add(parent, size, keep_errors=keep_errors)

    def skip_nodes(self, first: int) -> None:
        """Numbers below `first` are taken."""
        self._nodes = count(first)

    def adopt_lanes(self, parent: int, lanes: tuple[int, ...]) -> None:
        """Like `new_lanes`, with numbers that are given; an error in one ends them all."""
        with self.lock:
            self.lanes.adopt(parent, lanes, keep_errors=False)

    def emit(self, op: Op, *, start: bool = False) -> None:
        """Queue an op; with `start`, hand over what is queued, since something can begin to run.

        Raises `ProgramError` when the program has ended.
        """
        with self.lock:
            if self.outbox.closing and not isinstance(op, (protocol.ReadLane, protocol.Drop)):
                raise ProgramError(
                    "the program has ended; its state takes nothing more",
                    program=self.name,
                    hint="Do it inside the program.",
                )
            self.ops.append(op)
            self.outbox.put(op)
        if start:
            self.outbox.flush()
        if self.streaming or self.asynchronous:
            self.readers.notify()  # somebody may wait for this name, or for the next piece of text

    def new_slot(self, name: str, lane: int, node: int, kind: ValueType) -> Slot:
        """The place of a value that an op about to be emitted computes."""
        slot = Slot(name, lane, node, kind, self.name)
        with self.lock:
            self.slots[node] = slot
        return slot

    def read_lane(self, lane: int) -> LaneRead:
        """Ask for a lane's tokens and text."""
        read = LaneRead()
        node = self.next_node()
        with self.lock:
            if not self.outbox.open or (self.closed and self.failure is not None):
                read.failure = self.failure or Cancelled("the program was abandoned")
                return read
            self._reads[node] = read
        self.emit(protocol.ReadLane(lane, node), start=True)
        return read

    # ---- waiting

    def wait_until(self, ready: Ready) -> None:
        """Wait until `ready()`, which only events of this run can make true."""
        if not ready():
            self.outbox.flush()
            self.readers.wait(ready)

    async def arrival(self, ready: Ready) -> None:
        """Like `wait_until`, on the running event loop."""
        if not ready():
            self.outbox.flush()
            await self.readers.arrival(ready)

    # ---- events

    def apply(self, events: list[Event]) -> None:
        """Take events; runs on the backend's thread."""
        cancels: list[Op] = []
        with self.lock:
            for event in events:
                self._take(event, cancels)
            woken = self.readers.due()
            if cancels:
                self.ops += cancels
                self.outbox.put(*cancels)
        if cancels:
            self.outbox.flush()
        for wake in woken:
            wake()

    def _take(self, event: Event, cancels: list[Op]) -> None:
        if isinstance(event, protocol.TextDelta):
            self._take_delta(event)
        elif isinstance(event, protocol.ReasoningDelta):
            self._take_reasoning(event)
        elif isinstance(event, protocol.CallMade):
            self._take_call(event)
        elif isinstance(event, protocol.ValueReady):
            self._take_value(event)
        elif isinstance(event, protocol.NodeFailed):
            self._take_failure(event, cancels)
        elif isinstance(event, protocol.LaneContent):
            if (read := self._reads.pop(event.node, None)) is not None:
                read.content = event
        elif isinstance(event, protocol.Closed):
            self.stats += event.stats
            self._take_final_error(event.error)
            self.closed = True
            error = self.failure or Cancelled("the program ended", program=self.name)
            self._end_slots(error)
            if event.error is not None:
                self._end_reads(error)

    def _take_delta(self, event: protocol.TextDelta) -> None:
        slot = self.slots.get(event.node)
        if slot is not None and not slot.done:
            slot.partial.append(event.text)
            if self.streaming:
                self.events.append(TextDelta(slot.name, event.text, event.lane))
                self._parts(slot, event.text, event.lane)

    def _take_reasoning(self, event: protocol.ReasoningDelta) -> None:
        slot = self.slots.get(event.node)
        if slot is not None and not slot.done and self.streaming:
            self.events.append(ReasoningDelta(slot.name, event.text, event.lane))

    def _take_call(self, event: protocol.CallMade) -> None:
        slot = self.slots.get(event.node)
        if slot is None or slot.done or slot.tools is None or not self.streaming:
            return
        try:
            call = Call(slot.tools.tools[event.call.name], event.call)
        except ConstraintError:
            return  # it belongs to the variable, whose reader meets it
        self.events.append(ToolCall(slot.name, call, event.lane))

    def _take_value(self, event: protocol.ValueReady) -> None:
        self.stats += event.stats
        slot = self.slots.get(event.node)
        if slot is None or slot.done:
            return
        slot.texts, slot.request = event.texts, event.meta
        slot.logprobs, slot.choices = event.logprobs, event.choices
        slot.reasoning, slot.taken, slot.replies = event.reasoning, event.taken, event.replies
        slot.done = True
        if self.streaming:
            if slot.texts:
                seen = slot.watch.seen if slot.watch is not None else 0
                self._parts(slot, slot.texts[0][seen:], event.lane)
            for name in slot.type.captures:
                found = _value_of(partial(slot.captured, name))
                self.events.append(VariableReady(name, *found, event.lane))
            self.events.append(VariableReady(slot.name, *_value_of(slot.value), event.lane))

    def _parts(self, slot: Slot, text: str, lane: int) -> None:
        """Report the fields and items that `text`, the next piece of a JSON value, finishes."""
        if slot.watch is None and slot.type.json is not None:
            slot.watch = Watch(slot.type.json)
        if slot.watch is not None:
            for path, value in slot.watch.feed(text):
                self.events.append(VariableReady(slot.name + path, value, None, lane))

    def _take_failure(self, event: protocol.NodeFailed, cancels: list[Op]) -> None:
        error = from_wire(event.error).located(program=self.name, variable=event.name)
        read = self._reads.pop(event.node, None)
        if read is not None:
            read.failure = error
            return
        slot = self.slots.get(event.node)
        if slot is not None and not slot.done:
            slot.request = event.meta
            if slot.tools is not None:
                slot.partial = [event.text]
            elif rest := event.text[len("".join(slot.partial)) :]:
                slot.partial.append(rest)
            slot.fail(error)
        verdict = self.lanes.fail(event.lane, error)
        if verdict.cancel:
            cancels.append(protocol.Cancel(verdict.cancel, "a sibling branch failed"))
        if verdict.fatal:
            self._fail_all(error)

    def _take_final_error(self, wire: dict[str, Any] | None) -> None:
        """An error that no node has reported; those of nodes are known already."""
        if wire is None or self.lanes.any_failed:
            return
        error = from_wire(wire).located(program=self.name)
        if not (isinstance(error, Cancelled) and self.lanes.cancelled):
            self._fail_all(error)

    def _fail_all(self, error: BranchlineError) -> None:
        if self.failure is None:
            self.failure = error

    def _end_slots(self, error: BranchlineError) -> None:
        for slot in self.slots.values():
            slot.fail(error)

    def _end_reads(self, error: BranchlineError) -> None:
        for read in self._reads.values():
            read.failure = read.failure or error
        self._reads.clear()

    def depends(self, reference: Reference) -> None:
        """A placeholder was appended; only a tracing run has any."""

    # ---- the end

    def cancel_lanes(self, lanes: tuple[int, ...], reason: str) -> None:
        """End these lanes and what forked from them; their values become `Cancelled`."""
        with self.lock:
            found = self.lanes.cancel(lanes)
            if not found or self.outbox.closing:
                return
            op = protocol.Cancel(found, reason)
            self.ops.append(op)
            self.outbox.put(op)
        self.outbox.flush()

    def finish(self) -> None:
        """No more ops come: wait until all has run, and raise the first error."""
        if self.failure is None:
            self.close()
            self.wait_until(lambda: self.closed)
        if self.failure is not None:
            raise self.failure

    async def afinish(self) -> None:
        """Like `finish`, on the running event loop."""
        if self.failure is None:
            self.close()
            await self.arrival(lambda: self.closed)
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Say that no more ops come; `closed` becomes true when everything has run."""
        with self.lock:
            if not self.outbox.closing:
                self.outbox.close()
        self.outbox.flush()

    def abandon_unfinished(self) -> None:
        """Stop what has not come to its end."""
        if not self.closed:
            self.abandon()

    def abandon(self, error: BranchlineError | None = None) -> None:
        """Stop everything now. What has no value yet fails with `error` or `Cancelled`."""
        with self.lock:
            if not self.closed:
                if error is not None:
                    self._fail_all(error)
                reason = self.failure or Cancelled("the program was stopped", program=self.name)
                self._end_slots(reason)
            self._end_reads(self.failure or Cancelled("the program was stopped"))
            self.closed = True
            woken = self.readers.due()
        self.outbox.abandon()
        for wake in woken:
            wake()


def _value_of(read: Callable[[], Any]) -> tuple[Any, BranchlineError | None]:
    try:
        return read(), None
    except BranchlineError as error:
        return None, error


def _sink(run: Run) -> protocol.Sink:
    """Events for `run`, as long as somebody holds it."""
    reference = weakref.ref(run)

    def sink(events: list[Event]) -> None:
        target = reference()
        if target is not None:
            target.apply(events)

    return sink
