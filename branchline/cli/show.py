"""A finished program as coloured text: what was given, what the model wrote, branch by branch.

Reads a request graph, nothing else.
"""

from __future__ import annotations

from rich.text import Text

from branchline.runtime.programs.graph import GraphNode, RequestGraph
from branchline.runtime.programs.protocol import AppendText, BeginRole, EndRole, Fork, Join

GIVEN = "dim"
GENERATED = "bold green"
CHOSEN = "bold cyan"
FRAME = "blue"


def program_text(graph: RequestGraph) -> Text:
    """The text of every lane; branches are indented below the place where they leave."""
    lanes = {lane.id: lane for lane in graph.lanes()}
    nodes = {node.id: node for node in graph.nodes}
    shown = Text()

    def write(text: str, style: str, depth: int) -> None:
        bar = "│ " * depth
        for number, line in enumerate(text.split("\n")):
            if number:
                shown.append("\n")
            if depth and (not shown.plain or shown.plain.endswith("\n")):
                shown.append(bar, style=FRAME)
            shown.append(line, style=style)

    def fresh_line() -> None:
        if shown.plain and not shown.plain.endswith("\n"):
            shown.append("\n")

    def lane(number: int, depth: int) -> None:
        for node_id in lanes[number].nodes:
            node = nodes[node_id]
            if isinstance(node.op, Fork):
                for branch, child in enumerate(node.op.children, 1):
                    if child in lanes:
                        fresh_line()
                        shown.append(f"{'│ ' * depth}├─ branch {branch}\n", style=FRAME)
                        lane(child, depth + 1)
                fresh_line()
            elif isinstance(node.op, BeginRole):
                fresh_line()
                write(f"{node.op.role}: ", FRAME, depth)
            elif isinstance(node.op, EndRole):
                fresh_line()
            elif not isinstance(node.op, Join):
                text, style = _piece(node)
                write(text, style, depth)

    for info in lanes.values():
        if info.parent is None:
            lane(info.id, 0)
    shown.rstrip()
    return shown


def _piece(node: GraphNode) -> tuple[str, str]:
    """Text and style of one node that adds text."""
    if isinstance(node.op, AppendText):
        parts = [part if isinstance(part, str) else f"{{{part.name}}}" for part in node.op.parts]
        return "".join(parts), GIVEN
    if node.kind == "select":
        return "".join(node.values[:1]), CHOSEN
    if node.kind == "generate":
        return "".join(node.values[:1]), GENERATED
    return "", GIVEN
