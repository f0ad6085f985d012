"""What a request graph is made of: nodes, edges, lanes. Data only."""

from __future__ import annotations

from typing import Literal

import msgspec

from branchline.runtime.programs.protocol import (
    AppendText,
    BeginRole,
    DeclareTools,
    EndRole,
    Fork,
    Generate,
    Join,
    NodeStats,
    Select,
    SetVariable,
)

NodeKind = Literal["append", "role", "tools", "generate", "select", "set", "fork", "join"]
EdgeKind = Literal["sequence", "data", "dynamic"]
NodeOp = (
    AppendText | BeginRole | EndRole | DeclareTools | Generate | Select | SetVariable | Fork | Join
)

END = -1
"""Target of a dynamic edge when the program ended (or might have) because of a value."""

_KINDS: dict[type, NodeKind] = {
    AppendText: "append",
    BeginRole: "role",
    EndRole: "role",
    DeclareTools: "tools",
    Generate: "generate",
    Select: "select",
    SetVariable: "set",
    Fork: "fork",
    Join: "join",
}


class GraphNode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One op and what became of it.

    Attributes:
        values: texts of a generate, select or set node (n of them for n outputs).
        error: message of the error that ended it, if one did.
        stats: None when the graph was traced and not run.
    """

    op: NodeOp
    values: tuple[str, ...] = ()
    error: str = ""
    stats: NodeStats | None = None

    @property
    def id(self) -> int:
        """The op's node number."""
        return self.op.node

    @property
    def lane(self) -> int:
        """The lane the op belongs to."""
        return self.op.lane

    @property
    def kind(self) -> NodeKind:
        """Coarse kind of the op."""
        return _KINDS[type(self.op)]

    @property
    def name(self) -> str:
        """Variable the node defines, or ""."""
        return defined_name(self.op)


class GraphEdge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`dst` comes after `src`: in its lane, because it reads a value, or because it was decided so.

    Attributes:
        src, dst: node numbers; `dst` of a dynamic edge may be `END`.
        name: variable that flows along a data or dynamic edge.
    """

    src: int
    dst: int
    kind: EdgeKind
    name: str = ""


class LaneInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One lane of the tree: its tokens are its parent's up to `fork_node`, then its own nodes'.

    Attributes:
        parent: None for a root.
        fork_node: node of the parent that created it; None for a root.
        nodes: its own nodes in order.
    """

    id: int
    parent: int | None = None
    fork_node: int | None = None
    nodes: tuple[int, ...] = ()


class ConstantPrefix(msgspec.Struct, frozen=True, kw_only=True):
    """What every run of the program starts with, whatever its arguments.

    Attributes:
        nodes: nodes that are wholly or partly in it.
        ops: the same as ops, the last text cut before its first argument or value.
        text: literal text; with the template's markup when `turns` was given.
        token_ids: ids when a tokenizer was given, else None. Where a text is cut before an
            argument, its last id is left out, since it may merge with what follows.
    """

    nodes: tuple[int, ...]
    ops: tuple[NodeOp, ...]
    text: str
    token_ids: tuple[int, ...] | None = None


def defined_name(op: NodeOp) -> str:
    """Variable that an op defines, or ""."""
    return op.name if isinstance(op, (Generate, Select, SetVariable)) else ""
