"""A program as data: its ops, the edges between them, and, after a run, what each op did.

Invariant: nodes stand in the order in which they were added, every edge points to a later node (or
to `END`), and sequence and data edges follow from the ops alone, so that a graph read from JSON is
checked against its own nodes. Only dynamic edges carry knowledge from outside: "whether this node
exists was decided by that generated value". Knows nothing about engines; tokenizers and templates
are arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from branchline.runtime.core.protocols import ChatTurns, TextTokenizer
from branchline.runtime.errors import ProgramError
from branchline.runtime.programs import mermaid, trace_view
from branchline.runtime.programs.graph_links import Linker, lane_tree
from branchline.runtime.programs.graph_types import (
    END,
    ConstantPrefix,
    EdgeKind,
    GraphEdge,
    GraphNode,
    LaneInfo,
    NodeKind,
    NodeOp,
    defined_name,
)
from branchline.runtime.programs.protocol import (
    AppendText,
    ArgRef,
    BeginRole,
    Close,
    DeclareTools,
    EndRole,
    NodeStats,
    Op,
    Part,
    SetVariable,
)

VERSION = 1

__all__ = [
    "END",
    "ConstantPrefix",
    "EdgeKind",
    "GraphBuilder",
    "GraphEdge",
    "GraphNode",
    "LaneInfo",
    "NodeKind",
    "NodeOp",
    "RequestGraph",
]


class RequestGraph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Nodes and edges of one program; made by `GraphBuilder` or `from_json`.

    Attributes:
        version: of the JSON form.
        args: names of the program's arguments that an `ArgRef` may use.
    """

    version: int = VERSION
    name: str = ""
    args: tuple[str, ...] = ()
    nodes: tuple[GraphNode, ...] = ()
    edges: tuple[GraphEdge, ...] = ()

    # ---- looking

    @property
    def is_static(self) -> bool:
        """True when no control flow depended on a generated value."""
        return all(edge.kind != "dynamic" for edge in self.edges)

    def node(self, node_id: int) -> GraphNode:
        """The node with this number; ProgramError when there is none."""
        for node in self.nodes:
            if node.id == node_id:
                return node
        raise ProgramError(
            "no such node in the request graph",
            value=node_id,
            program=self.name,
            hint="Node numbers are those of `graph.nodes`.",
        )

    def lanes(self) -> tuple[LaneInfo, ...]:
        """The lane tree, roots and parents before children."""
        return lane_tree(self.nodes)

    def prefix_nodes(self, node_id: int) -> tuple[int, ...]:
        """Nodes whose tokens stand before this one's, from the root lane on."""
        lanes = {lane.id: lane for lane in self.lanes()}
        lane, stop = lanes[self.node(node_id).lane], node_id
        found: list[int] = []
        while True:
            own = list(lane.nodes[: lane.nodes.index(stop)])
            found[:0] = own if stop == node_id else [*own, stop]
            if lane.parent is None or lane.fork_node is None:
                return tuple(found)
            stop, lane = lane.fork_node, lanes[lane.parent]

    def shared_prefix(self, first: int, second: int) -> tuple[int, ...]:
        """Nodes whose tokens two nodes share (computed once by the prefix cache)."""
        shared: list[int] = []
        for one, other in zip(self.prefix_nodes(first), self.prefix_nodes(second), strict=False):
            if one != other:
                break
            shared.append(one)
        return tuple(shared)

    def constant_prefix(
        self, *, turns: ChatTurns | None = None, tokenizer: TextTokenizer | None = None
    ) -> ConstantPrefix:
        """What all runs share: lane 0 up to its first argument, value, fork or join."""
        ops, cut = _constant_ops(self.nodes)
        text, ids = _render_prefix(ops, cut, turns, tokenizer)
        return ConstantPrefix(
            nodes=tuple(op.node for op in ops), ops=tuple(ops), text=text, token_ids=ids
        )

    # ---- running

    def ops(self, arguments: Mapping[str, object] | None = None) -> list[Op]:
        """The op stream of a run, `Close` included, with every `ArgRef` replaced by its text.

        Raises:
            ProgramError: an argument is missing or unknown, or control flow depends on a
                generated value (then only the Python function can run the program).
        """
        given = dict(arguments or {})
        for edge in self.edges:
            if edge.kind == "dynamic":
                target = "the end of the program" if edge.dst == END else f"node {edge.dst}"
                raise ProgramError(
                    f"the graph cannot run without its function: {target} depends on the value "
                    f"of node {edge.src}{f' ({edge.name})' if edge.name else ''}",
                    value=edge.dst,
                    program=self.name,
                    hint="Run the program itself.",
                )
        _check_arguments(self, given)
        bound: list[Op] = [_bind(node.op, given) for node in self.nodes]
        return [*bound, Close()]

    # ---- other forms

    def to_json(self) -> str:
        """JSON text; `from_json` gives an equal graph."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> RequestGraph:
        """Read `to_json`'s form. ProgramError says where it is wrong."""
        try:
            graph = msgspec.json.decode(text, type=cls)
        except msgspec.DecodeError as error:
            raise ProgramError(
                f"not a request graph: {error}", hint="Use the text `to_json` gives."
            ) from error
        if graph.version != VERSION:
            raise ProgramError(
                "request graph of an unknown version",
                value=graph.version,
                hint=f"This release reads version {VERSION}.",
            )
        builder = GraphBuilder(graph.name, graph.args)
        builder.load(graph)
        if builder.build() != graph:
            raise ProgramError(
                "not a request graph: its edges do not follow from its nodes",
                value=graph.name,
                hint="Leave `edges` as `to_json` wrote them.",
            )
        return graph

    def to_mermaid(self) -> str:
        """A Mermaid flowchart."""
        return mermaid.render(self)

    def to_html(self, path: str | Path | None = None) -> str:
        """A self-contained page (timeline, lanes, texts); written to `path` when given."""
        page = trace_view.render(self)
        if path is not None:
            Path(path).write_text(page, encoding="utf-8")
        return page


class GraphBuilder:
    """Collects what a program did, in any interleaving, and builds its `RequestGraph`.

    Args:
        name: of the program.
        args: names of its arguments.
    """

    def __init__(self, name: str, args: Iterable[str] = ()) -> None:
        self.name = name
        self.args = tuple(args)
        self._ops: dict[int, NodeOp] = {}
        self._values: dict[int, tuple[str, ...]] = {}
        self._errors: dict[int, str] = {}
        self._stats: dict[int, NodeStats] = {}
        self._dynamic: list[tuple[int, int]] = []

    def add(self, op: Op) -> None:
        """Take the next op. Those that compute nothing (drop, cancel, read, close) are passed by.

        Raises:
            ProgramError: its node number is taken.
        """
        if not isinstance(op, NodeOp):
            return
        if op.node in self._ops or op.node < 0:
            raise ProgramError(
                "two ops have the same node number, or one a negative number",
                value=op.node,
                program=self.name,
                hint="Number the nodes of a program once, increasing.",
            )
        self._ops[op.node] = op

    def dynamic(self, node: int | None, on: Sequence[int]) -> None:
        """Say that node `node` (None = the program's end) exists because of the values of `on`."""
        self._dynamic += [(src, END if node is None else node) for src in on]

    def stats(self, stats: NodeStats) -> None:
        """Keep what a node did; a later report replaces an earlier one."""
        self._stats[stats.node] = stats

    def values(self, node: int, text: str | Sequence[str]) -> None:
        """Keep the text (or the n texts) of a node."""
        self._values[node] = (text,) if isinstance(text, str) else tuple(text)

    def error(self, node: int, message: str) -> None:
        """Keep the message of the error that ended a node."""
        self._errors[node] = message

    def load(self, graph: RequestGraph) -> None:
        """Take all that a graph holds, but the edges that follow from its ops."""
        for node in graph.nodes:
            self.add(node.op)
            if node.values:
                self._values[node.id] = node.values
            if node.error:
                self._errors[node.id] = node.error
            if node.stats is not None:
                self._stats[node.id] = node.stats
        self._dynamic += [(edge.src, edge.dst) for edge in graph.edges if edge.kind == "dynamic"]

    def build(self) -> RequestGraph:
        """The graph so far. ProgramError names a lane, variable, argument or node unknown."""
        nodes = tuple(
            GraphNode(
                op=op,
                values=self._values.get(op.node, ()),
                error=self._errors.get(op.node, ""),
                stats=self._stats.get(op.node),
            )
            for op in self._ops.values()
        )
        edges = Linker(self.name, frozenset(self.args)).link(self._ops.values())
        for src, dst in dict.fromkeys(self._dynamic):
            if src not in self._ops or (dst != END and dst not in self._ops):
                raise ProgramError(
                    "a dynamic edge names a node that is not there",
                    value=f"{src} -> {dst}",
                    program=self.name,
                    hint="Add the op of the node before the graph is built.",
                )
            edges.append(
                GraphEdge(src=src, dst=dst, kind="dynamic", name=defined_name(self._ops[src]))
            )
        return RequestGraph(name=self.name, args=self.args, nodes=nodes, edges=tuple(edges))


def _constant_ops(nodes: Sequence[GraphNode]) -> tuple[list[NodeOp], bool]:
    """Ops of the constant prefix; True when the last one is a text that was cut short."""
    ops: list[NodeOp] = []
    for node in nodes:
        op = node.op
        if op.lane != 0:
            continue
        if isinstance(op, AppendText):
            literal: list[Part] = []
            for part in op.parts:
                if not isinstance(part, str):
                    return ([*ops, _with_parts(op, literal)] if literal else ops), bool(literal)
                literal.append(part)
            ops.append(op)
        elif isinstance(op, DeclareTools):
            ops.insert(0, op)  # it stands before the turns that came before it
        elif isinstance(op, (BeginRole, EndRole, SetVariable)):
            ops.append(op)
        else:
            break
    return ops, False


def _render_prefix(
    ops: Sequence[NodeOp],
    cut: bool,
    turns: ChatTurns | None,
    tokenizer: TextTokenizer | None,
) -> tuple[str, tuple[int, ...] | None]:
    history: list[tuple[str, str]] = []
    role, content = "", ""
    pieces: list[tuple[str, bool]] = []
    for op in ops:
        if isinstance(op, AppendText):
            text = "".join(part for part in op.parts if isinstance(part, str))
            content += text
            if pieces and not pieces[-1][1]:
                text = pieces.pop()[0] + text
            pieces.append((text, False))
        elif isinstance(op, DeclareTools):
            if turns is None or not turns.tool_format.native:
                return "", None if tokenizer is None else ()  # what it says depends on the turns
            turns = turns.with_tools(op.tools)
        elif isinstance(op, BeginRole):
            role, content = op.role, ""
            pieces.append((turns.begin(history, role) if turns else "", True))
        elif isinstance(op, EndRole):
            history.append((role, content))
            pieces.append((turns.end(history, role) if turns else "", True))
    text = "".join(piece for piece, _ in pieces)
    if tokenizer is None:
        return text, None
    ids: list[int] = []
    for piece, special in pieces:
        ids += tokenizer.encode(piece, special=special) if piece else []
    return text, tuple(ids[:-1] if cut else ids)


def _with_parts(op: AppendText, parts: Sequence[Part]) -> AppendText:
    return AppendText(lane=op.lane, node=op.node, parts=tuple(parts))


def _check_arguments(graph: RequestGraph, given: Mapping[str, object]) -> None:
    used = {
        part.name
        for node in graph.nodes
        if isinstance(node.op, AppendText)
        for part in node.op.parts
        if isinstance(part, ArgRef)
    }
    for what, names in (("missing", used - set(given)), ("unknown", set(given) - set(graph.args))):
        if names:
            raise ProgramError(
                f"{what} argument of a request graph",
                value=", ".join(sorted(names)),
                program=graph.name,
                hint=f"Its arguments are: {', '.join(graph.args) or 'none'}.",
            )


def _bind(op: NodeOp, given: Mapping[str, object]) -> NodeOp:
    if not isinstance(op, AppendText) or all(isinstance(part, str) for part in op.parts):
        return op
    return _with_parts(
        op, [str(given[part.name]) if isinstance(part, ArgRef) else part for part in op.parts]
    )
