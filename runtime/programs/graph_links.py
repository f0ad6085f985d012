"""Edges and lanes that follow from a program's ops. Knows nothing of runs."""

from __future__ import annotations

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


class Linker:
    """Derives sequence and data edges from ops in order."""

    def __init__(self, program: str, args: frozenset[str]) -> None:
        self.program = program
        self.args = args
        self.last: dict[int, int | None] = {0: None}
        self.variables: dict[int, dict[str, int]] = {0: {}}
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
                self.variables[op.lane][name] = op.node
        return self.edges

    def _read(self, op: NodeOp) -> None:
        if isinstance(op, AppendText):
            read: dict[tuple[int, str], None] = {}
            for part in op.parts:
                if isinstance(part, VarRef):
                    source = self.variables.get(part.lane, {}).get(part.name)
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
                self.variables[child] = dict(self.variables[op.lane])
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
