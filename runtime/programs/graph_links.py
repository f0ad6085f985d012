"""Edges and lanes that follow from a program's ops. Knows nothing of runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from branchline.runtime.errors import ProgramError
from branchline.runtime.programs.graph_types import (
    GraphEdge,
    GraphNode,
    LaneInfo,
    NodeOp,
    defined_name,
)
from branchline.runtime.programs.protocol import AppendText, ArgRef, Fork, Join, VarRef

MAX_DEPTH = 1000
"""Branches within branches of one graph."""


class Scopes:
    """Which node defines a name for each lane: a branch has what its parent had at the fork.

    Nothing is copied for a branch, so that a graph's size bounds what is kept of it.
    """

    def __init__(self, program: str = "") -> None:
        self._program = program
        self._clock = 0
        self._defined: dict[tuple[int, str], list[tuple[int, int]]] = {}
        self._origins: dict[int, tuple[int, int, int]] = {}  # parent, clock at the fork, depth

    def define(self, lane: int, name: str, node: int) -> None:
        """From now on `name` is what `node` makes, in this lane."""
        self._clock += 1
        self._defined.setdefault((lane, name), []).append((self._clock, node))

    def fork(self, lane: int, child: int) -> None:
        """A branch begins. ProgramError: too deep."""
        depth = self._origins[lane][2] + 1 if lane in self._origins else 1
        if depth > MAX_DEPTH:
            raise ProgramError(
                f"branches are nested more than {MAX_DEPTH} deep",
                value=child,
                program=self._program,
                hint="Join a branch before the next one begins.",
            )
        self._clock += 1
        self._origins[child] = (lane, self._clock, depth)

    def find(self, lane: int, name: str) -> int | None:
        """The node that defines `name` for what comes next in `lane`."""
        return self._find(lane, name, self._clock + 1)

    def inherits(self, lane: int, name: str) -> bool:
        """Whether `lane` had `name` when it began."""
        origin = self._origins.get(lane)
        return origin is not None and self._find(origin[0], name, origin[1]) is not None

    def _find(self, lane: int, name: str, before: int) -> int | None:
        while True:
            found = self._defined.get((lane, name), ())
            if count := bisect_left(found, (before, -1)):
                return found[count - 1][1]
            if lane not in self._origins:
                return None
            lane, before, _ = self._origins[lane]


class Linker:
    """Derives sequence and data edges from ops in order."""

    def __init__(self, program: str, args: frozenset[str]) -> None:
        self.program = program
        self.args = args
        self.last: dict[int, int | None] = {0: None}
        self.scopes = Scopes(program)
        self.edges: list[GraphEdge] = []

    def link(self, ops: Iterable[NodeOp]) -> list[GraphEdge]:
        """Edges in the order of their targets."""
        for op in ops:
            if op.lane not in self.last:
                raise self._unknown("lane", op.lane, op.node)
            before = self.last[op.lane]
            if before is not None:
                self.edges.append(GraphEdge(src=before, dst=op.node, kind="sequence"))
            self._read(op)
            self.last[op.lane] = op.node
            if name := defined_name(op):
                self.scopes.define(op.lane, name, op.node)
        return self.edges

    def _read(self, op: NodeOp) -> None:
        if isinstance(op, AppendText):
            read: dict[tuple[int, str], None] = {}
            for part in op.parts:
                if isinstance(part, VarRef):
                    source = self.scopes.find(part.lane, part.name)
                    if source is None:
                        raise self._unknown("variable", part.name, op.node)
                    read[source, part.name] = None
                elif isinstance(part, ArgRef) and part.name not in self.args:
                    raise self._unknown("argument", part.name, op.node)
            for source, name in read:
                self.edges.append(GraphEdge(src=source, dst=op.node, kind="data", name=name))
        elif isinstance(op, Fork):
            for child in op.children:
                if child in self.last:
                    raise ProgramError(
                        f"node {op.node} creates a lane that exists",
                        value=child,
                        program=self.program,
                        hint="Give every lane a number of its own.",
                    )
                self.last[child] = op.node
                self.scopes.fork(op.lane, child)
        elif isinstance(op, Join):
            for child in op.children:
                source = self.last.get(child)
                if source is None:
                    raise self._unknown("lane", child, op.node)
                self.edges.append(GraphEdge(src=source, dst=op.node, kind="data"))

    def _unknown(self, what: str, value: object, node: int) -> ProgramError:
        return ProgramError(
            f"node {node} uses a {what} that is not there",
            value=value,
            program=self.program,
            hint=f"Make the {what} before it is used.",
        )


def lane_tree(nodes: Sequence[GraphNode]) -> tuple[LaneInfo, ...]:
    """Lanes of a checked node list, parents before children."""
    parents: dict[int, tuple[int, int] | None] = {0: None}
    members: dict[int, list[int]] = {0: []}
    for node in nodes:
        members[node.lane].append(node.id)
        if isinstance(node.op, Fork):
            for child in node.op.children:
                parents[child] = (node.lane, node.id)
                members[child] = []
    return tuple(
        LaneInfo(
            id=lane,
            parent=origin[0] if origin else None,
            fork_node=origin[1] if origin else None,
            nodes=tuple(members[lane]),
        )
        for lane, origin in parents.items()
    )
