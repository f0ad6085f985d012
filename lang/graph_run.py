"""Running a request graph without the Python function it was traced from.

The whole graph is handed over at once; what comes back is a state like any other, except that its
values are texts: a graph knows constraints, not the Python types they were written as.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from branchline.lang.backends.base import resolve_backend
from branchline.lang.errors import BranchlineError
from branchline.lang.run import Run
from branchline.lang.state import State
from branchline.lang.transcript import Piece, RoleMark, Transcript
from branchline.lang.types import TEXT
from branchline.lang.variables import Constant, Items, Slot, Variable
from branchline.runtime.programs.graph_types import NodeOp
from branchline.runtime.programs.graph_values import Definition, root_variables
from branchline.runtime.programs.protocol import (
    AppendText,
    BeginRole,
    EndRole,
    Fork,
    Generate,
    Join,
    Part,
    Select,
    SetVariable,
    VarRef,
)

if TYPE_CHECKING:
    from branchline.runtime.programs.graph import RequestGraph
    from branchline.runtime.programs.protocol import ProgramBackend


def run_graph(
    graph: RequestGraph,
    arguments: Mapping[str, object] | None = None,
    *,
    backend: ProgramBackend | None = None,
    deadline_s: float | None = None,
    priority: int = 0,
) -> State:
    """Run a graph to its end; its variables are read from the state that is returned.

    Args:
        arguments: of the program, by name; each becomes text.
        deadline_s: seconds for the whole program.

    Raises:
        ProgramError: an argument is missing or unknown, or control flow depends on a generated
            value: then only the program itself can be run.
        BranchlineError: the first error of the program.
    """
    ops = [op for op in graph.ops(arguments) if isinstance(op, NodeOp)]
    run = Run(graph.name, resolve_backend(backend), deadline_s=deadline_s, priority=priority)
    try:
        run.skip_nodes(max((op.node for op in ops), default=-1) + 1)
        replay = _Replay(run)
        with run.outbox.batched():
            for op in ops:
                replay.take(op)
        state = State(run)
        state._transcript = replay.transcripts[0]
        state._variables.update(root_variables(ops, replay.variable, Items))
        run.finish()
    except BaseException as error:
        run.abandon(error if isinstance(error, BranchlineError) else None)
        raise
    return state


class _Replay:
    """Sends ops as a program would, and keeps what its states would know.

    Attributes:
        transcripts: of each lane.
    """

    def __init__(self, run: Run) -> None:
        self.transcripts = {0: Transcript()}
        self._run = run
        self._places: dict[int, Slot] = {}
        self._known: dict[int, dict[str, str | Slot]] = {0: {}}

    def take(self, op: NodeOp) -> None:
        """Send one op."""
        transcript = self.transcripts[op.lane]
        if isinstance(op, AppendText):
            transcript.pieces += [self._piece(part) for part in op.parts]
        elif isinstance(op, (Generate, Select)):
            place = self._run.new_slot(op.name, op.lane, op.node, TEXT)
            self._places[op.node] = self._known[op.lane][op.name] = place
            transcript.pieces.append(place)
        elif isinstance(op, (BeginRole, EndRole)):
            transcript.role = op.role if isinstance(op, BeginRole) else ""
            transcript.pieces.append(RoleMark(transcript.role))
        elif isinstance(op, SetVariable):
            self._known[op.lane][op.name] = op.text
        elif isinstance(op, Fork):
            self._fork(op)
        elif isinstance(op, Join) and op.mode == "append":
            for child in op.children:
                transcript.pieces += self.transcripts[child].pieces
        self._run.emit(op)

    def variable(self, op: Definition) -> Variable:
        """What a name that `op` defines stands for."""
        return Constant(op.text) if isinstance(op, SetVariable) else self._places[op.node]

    def _fork(self, op: Fork) -> None:
        self._run.adopt_lanes(op.lane, op.children)
        for child in op.children:
            self.transcripts[child] = Transcript(self.transcripts[op.lane])
            self._known[child] = dict(self._known[op.lane])

    def _piece(self, part: Part) -> Piece:
        if isinstance(part, VarRef):
            return self._known[part.lane][part.name]
        return str(part)
