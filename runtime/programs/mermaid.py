"""A request graph as a Mermaid flowchart: one box a node, one frame a lane. Text is escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from branchline.runtime.programs.protocol import (
    AppendText,
    ArgRef,
    BeginRole,
    DeclareTools,
    Fork,
    Generate,
    Join,
    Select,
    SetVariable,
    VarRef,
)

if TYPE_CHECKING:
    from branchline.runtime.programs.graph import GraphNode, RequestGraph

_SHAPES = {
    "append": ("[", "]"),
    "role": ("[[", "]]"),
    "tools": ("[[", "]]"),
    "generate": ("(", ")"),
    "select": ("{{", "}}"),
    "set": ("[/", "/]"),
    "fork": ("([", "])"),
    "join": ("([", "])"),
}
_ARROWS = {"sequence": "-->", "data": "-.->", "dynamic": "==>"}
_MAX_LABEL = 48


def render(graph: RequestGraph) -> str:
    """Flowchart text; node n is `n<number>`, a program's end is `finish`."""
    lines = ["flowchart TD"]
    by_id = {node.id: node for node in graph.nodes}
    for lane in graph.lanes():
        if not lane.nodes:
            continue
        lines.append(f'  subgraph lane{lane.id} ["lane {lane.id}"]')
        for node_id in lane.nodes:
            node = by_id[node_id]
            left, right = _SHAPES[node.kind]
            lines.append(f'    n{node_id}{left}"{_escape(label(node))}"{right}')
        lines.append("  end")
    if any(edge.dst < 0 for edge in graph.edges):
        lines.append('  finish(["end"])')
    for edge in graph.edges:
        target = "finish" if edge.dst < 0 else f"n{edge.dst}"
        note = f'|"{_escape(edge.name)}"|' if edge.name else ""
        lines.append(f"  n{edge.src} {_ARROWS[edge.kind]}{note} {target}")
    return "\n".join(lines) + "\n"


def label(node: GraphNode) -> str:
    """One line about a node: what it does, with its text cut to a few words."""
    op = node.op
    if isinstance(op, AppendText):
        return _cut("".join(part_text(part) for part in op.parts))
    if isinstance(op, BeginRole):
        return f"begin {op.role}"
    if isinstance(op, DeclareTools):
        return _cut(f"tools {', '.join(tool.name for tool in op.tools)}")
    if isinstance(op, Generate):
        return _cut(f"gen {op.name}{_by(op.adapter)}")
    if isinstance(op, Select):
        return _cut(f"select {op.name}{_by(op.adapter)}: {' / '.join(op.choices)}")
    if isinstance(op, SetVariable):
        return _cut(f"set {op.name} = {op.text}")
    if isinstance(op, Fork):
        return f"fork {len(op.children)}"
    if isinstance(op, Join):
        return f"join {len(op.children)} ({op.mode})"
    return "end of turn"


def part_text(part: str | VarRef | ArgRef) -> str:
    """A part of a text as a reader should see it: references stand in braces."""
    return part if isinstance(part, str) else f"{{{part.name}}}"


def _by(adapter: str) -> str:
    return f" by {adapter}" if adapter else ""


def _cut(text: str) -> str:
    flat = text.replace("\n", "⏎")
    return flat if len(flat) <= _MAX_LABEL else flat[: _MAX_LABEL - 1] + "…"


def _escape(text: str) -> str:
    """Mermaid entities for all that could end a label or start markup."""
    keep = set(" .,:;!?()/+-=_'…⏎")
    return "".join(char if char.isalnum() or char in keep else f"#{ord(char)};" for char in text)
