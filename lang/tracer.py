"""`f.trace(...)`: runs a program with placeholders and returns its request graph.

Invariant: the graph is never wrong. Where the program's way depends on a value that is not known,
one way is taken and the next node (or the end) gets a dynamic edge from that value's node. A loop
on such a value ends: after 16 tests the answers alternate.
"""

from __future__ import annotations

import contextvars
import inspect
import logging
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from branchline.lang import markers
from branchline.lang.errors import BranchlineError, ProgramError
from branchline.lang.expressions import Reference, decode
from branchline.lang.markers import BrokenMarker
from branchline.lang.placeholders import Placeholder
from branchline.lang.run import LaneRead, Run
from branchline.lang.state import State
from branchline.lang.tools import Call, Reply
from branchline.lang.trace_calls import Read, watched_calls
from branchline.lang.types import TEXT, ValueType
from branchline.lang.variables import Slot
from branchline.runtime.core.outputs import RequestMeta
from branchline.runtime.programs import protocol
from branchline.runtime.programs.graph import GraphBuilder, RequestGraph
from branchline.runtime.programs.protocol import ChoiceScore, Op

if TYPE_CHECKING:
    from branchline.lang.program import Program

logger = logging.getLogger(__name__)

PATIENCE = 16
"""Tests of unknown values that answer True before the answers alternate."""
MAX_TESTS = 10_000


class _Recorder:
    """A backend that computes nothing, and the session of its one program."""

    name = "trace"
    features = protocol.ENGINE_FEATURES

    def open(self, program: protocol.OpenProgram, sink: protocol.Sink) -> _Recorder:
        return self

    def send(self, ops: list[Op]) -> None:
        """The run keeps its ops itself."""

    def abandon(self) -> None:
        """Nothing runs."""

    def flush_cache(self) -> None:
        """Nothing is cached."""

    def info(self) -> dict[str, Any]:
        return {"backend": self.name}

    def close(self) -> None:
        """Nothing is open."""


class TraceSlot(Slot):
    """A value that stays unknown."""

    __slots__ = ("_run",)

    def __init__(self, run: TraceRun, name: str, lane: int, node: int, kind: ValueType) -> None:
        super().__init__(name, lane, node, kind, run.name)
        self._run = run
        self.request = RequestMeta(model="trace")
        self.done = True

    def value(self) -> Any:
        if self.tools is not None:
            return TraceReply(self._run, self.node, self._placeholder(exact=False))
        constraint = self.type.constraint
        typed = any(kind is not TEXT for kind in self.branches)
        if not typed and (constraint is None or constraint.kind in ("regex", "choices")):
            return self._placeholder()
        return self._placeholder(exact=False)  # an instance reads otherwise than its text

    def captured(self, name: str) -> Any:
        return self._placeholder(exact=False)

    def text(self) -> str:
        return self._placeholder()

    def meta(self) -> Any:
        self.texts = (self.text(),)
        self.choices = (ChoiceScore(self.texts[0], 0.0, (), 1.0),)
        self._run.look((self.node,))
        return super().meta()

    def _placeholder(self, *, exact: bool = True) -> Placeholder:
        reference = Reference(name=self.name, lane=self.lane, nodes=(self.node,), exact=exact)
        self._run.read(reference.nodes)
        return Placeholder(reference, self._run)


class TraceReply(Reply):
    """A reply that stays unknown. One without calls, which ends a loop over them."""

    def __init__(self, run: TraceRun, node: int, text: Placeholder) -> None:
        super().__init__(text)
        self._run = run
        self._node = node

    @property
    def calls(self) -> list[Call]:
        """None; that the program asks is noted."""
        self._run.look((self._node,))
        return []

    @calls.setter
    def calls(self, calls: list[Call]) -> None:
        """Nothing is kept."""


class TraceRun(Run):
    """A run without a model. Every value is there at once, as a placeholder.

    Args:
        arguments: names of the program's arguments, for the graph.
    """

    def __init__(self, program: Program, arguments: tuple[str, ...]) -> None:
        super().__init__(program.name, _Recorder(), asynchronous=program.asynchronous)
        self.tracing = True
        self.builder = GraphBuilder(program.name, arguments)
        self._tests = 0
        self._looked: dict[int, None] = {}
        self._latest: dict[tuple[int, str], int] = {}
        self._arguments: dict[int, str] = {}
        self._read: dict[int, None] = {}
        self.last_read = Read()
        self._argument_nodes: dict[str, int] = {}

    # ---- the run

    def new_slot(self, name: str, lane: int, node: int, kind: ValueType) -> Slot:
        slot = TraceSlot(self, name, lane, node, kind)
        self.slots[node] = slot
        self._latest[lane, name] = node
        return slot

    def emit(self, op: Op, *, start: bool = False) -> None:
        if isinstance(op, protocol.ReadLane):
            return
        self.builder.add(op)
        if self._looked and not isinstance(op, (protocol.Close, protocol.Drop, protocol.Cancel)):
            self.builder.dynamic(op.node, tuple(self._looked))
            self._looked.clear()

    def read_lane(self, lane: int) -> LaneRead:
        """The text of a lane depends on all values so far."""
        read = LaneRead()
        nodes = (self._number("text"), *self.slots)
        text = Placeholder(Reference(name="text", lane=lane, nodes=nodes, exact=False), self)
        read.content = protocol.LaneContent(lane, -1, (), text)
        self.look(nodes)
        return read

    def finish_trace(self) -> RequestGraph:
        """The graph; what was looked at last may have ended the program."""
        if self._looked:
            self.builder.dynamic(None, tuple(self._looked))
        return self.builder.build()

    def read(self, nodes: tuple[int, ...]) -> None:
        """The program gets hold of a value that is not known."""
        self._read.update(dict.fromkeys(nodes))
        self.last_read = Read(nodes)

    def stops(self, error: Exception) -> bool:
        """Whether the error may come of a value that is not known: then it is the end of what can
        be told, and it depends on all that the program has got hold of.
        """
        rule_broken = isinstance(error, BranchlineError) and not isinstance(error, BrokenMarker)
        if rule_broken or not self._read:
            return False
        logger.info("the trace of %r ends with %s: %s", self.name, type(error).__name__, error)
        self.look(tuple(self._read))
        return True

    # ---- the placeholders' watcher

    def decide(self, nodes: tuple[int, ...]) -> bool:
        self.look(nodes)
        self._tests += 1
        if self._tests > MAX_TESTS:
            raise ProgramError(
                f"the program tested unknown values {MAX_TESTS} times while it was traced",
                program=self.name,
                hint="Give trace() the arguments that its loops depend on.",
            )
        return self._tests <= PATIENCE or self._tests % 2 == 0

    def look(self, nodes: tuple[int, ...]) -> None:
        for node in nodes:
            if (name := self._arguments.get(node)) is not None:
                node = self._argument_node(name)
            self._looked[node] = None

    def stand_in(self, payload: bytes) -> str:
        """Plain text for a value that went where a graph can hold no reference."""
        node = decode(payload)
        if not isinstance(node, Reference):
            raise ProgramError(
                "an expression was formatted into something that takes plain text only",
                program=self.name,
                hint="Expressions in f-strings can only be appended.",
            )
        self.look(node.nodes)
        return f"{{{node.name}}}" if not node.lane else f"{{{node.name} of lane {node.lane}}}"

    def depends(self, reference: Reference) -> None:
        """A placeholder is appended. One that is not a variable's own text marks its node."""
        exact = reference.exact and (
            reference.argument
            or self._latest.get((reference.lane, reference.name)) in reference.nodes
        )
        if not exact:
            self.look(reference.nodes)

    def argument(self, name: str) -> Placeholder:
        """A placeholder for an argument that was not given. Its number is negative until it is
        looked at, since a graph has no node for an argument.
        """
        reference = Reference(name=name, argument=True, nodes=(self._number(name),))
        self.read(reference.nodes)
        return Placeholder(reference, self)

    def _number(self, name: str) -> int:
        number = -1 - len(self._arguments)
        self._arguments[number] = name
        return number

    def _argument_node(self, name: str) -> int:
        """A node that a dynamic edge from something unknown can start from: a `SetVariable`."""
        if name not in self._argument_nodes:
            node = self._argument_nodes[name] = self.next_node()
            self.builder.add(protocol.SetVariable(0, node, name, ""))
        return self._argument_nodes[name]


def trace(program: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RequestGraph:
    """Run `program` with placeholders; see `Program.trace`.

    Raises what the program raises where no unknown value can be the reason, and `InvalidOption` for
    arguments it does not have. Where one can be (a number is read from a text, say), the graph ends
    there, with a dynamic edge.
    """
    names = tuple(program.signature.parameters)
    run = TraceRun(program, names)
    try:
        bound = program.signature.bind_partial(*args, **kwargs)
    except TypeError:
        program.check_arguments(args, kwargs)
        raise
    kinds = inspect.Parameter
    for name, parameter in program.signature.parameters.items():
        missing = name not in bound.arguments and parameter.default is kinds.empty
        if missing and parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD):
            bound.arguments[name] = run.argument(name)
    bound = program.signature.bind(*bound.args, **bound.kwargs)
    state = State(run, defaults=(program.defaults,))
    context = contextvars.copy_context()
    context.run(markers.stand_in.set, run.stand_in)
    try:
        context.run(_run_body, program, state, bound)
    except Exception as error:
        if not run.stops(error):
            raise
    graph = run.finish_trace()
    run.abandon()
    return graph


def _run_body(program: Program, state: State, bound: inspect.BoundArguments) -> None:
    run = state._run
    assert isinstance(run, TraceRun)

    def watched() -> AbstractContextManager[None]:
        return watched_calls(run.look, lambda: run.last_read)

    async def body() -> None:
        with watched():
            await program.func(state, *bound.args, **bound.kwargs)

    if program.asynchronous:
        from branchline.lang.runner import run_coroutine

        run_coroutine(body)
        return
    with watched():
        program.func(state, *bound.args, **bound.kwargs)
