"""A program as it runs, in a terminal: the text as it comes, then one line a node.

Given text is dim, generated text green, chosen text cyan. Reads events and the graph of the run;
knows nothing of backends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from branchline.lang.events import Done
from branchline.lang.stream import Background
from branchline.lang.transcript import Piece, RoleMark
from branchline.lang.variables import Slot
from branchline.runtime.programs.graph import GraphNode, RequestGraph

if TYPE_CHECKING:
    from branchline.lang.program import Program
    from branchline.lang.state import State
    from branchline.runtime.programs.protocol import ProgramBackend

GIVEN = "dim"
GENERATED = "green"
CHOSEN = "cyan"
FORCED = "magenta"
ACCEPTED = "bright_green"
CACHED = "yellow"
FAILED = "red"
ROLE = "bold blue"
MAX_SNIPPET = 24


def run_in_terminal(
    function: Program,
    args: Mapping[str, Any],
    backend: ProgramBackend | None = None,
    *,
    console: Console | None = None,
) -> State:
    """Run a program and show it while it runs; the finished state.

    Args:
        function: the program.
        args: its arguments, by name.
        backend: None = the current one.
        console: None = standard output.

    Raises the program's error, after showing what there is.
    """
    console = console or Console(highlight=False)
    given = {**args} if backend is None else {**args, "backend": backend}
    background = Background(function.call((), given))
    run, state = background.run, background.state
    try:
        with Live(console=console, refresh_per_second=12, transient=False) as live:
            while True:
                while run.events:
                    run.events.popleft()
                live.update(_transcript(state))
                if run.body_ended and not run.events:
                    break
                run.wait_until(lambda: bool(run.events) or run.body_ended)
    finally:
        background.cancel()
    if any(node.stats for node in state.graph.nodes):
        console.print(nodes_table(state.graph))
    background.raise_failure()
    return Done(state).state


def _transcript(state: State) -> RenderableType:
    """The root lane, and below it each branch that has something to show."""
    text = Text()
    for piece in state._transcript.all_pieces():
        _add(text, piece)
    branches: dict[int, Text] = {}
    for slot in list(state._run.slots.values()):
        if slot.lane:
            branch = branches.setdefault(slot.lane, Text(f"branch {slot.lane}: ", style=ROLE))
            _add(branch, slot)
    return Group(text, *branches.values())


def _add(text: Text, piece: Piece) -> None:
    if isinstance(piece, str):
        text.append(piece, style=GIVEN)
    elif isinstance(piece, RoleMark):
        if text.plain and not text.plain.endswith("\n"):
            text.append("\n")
        if piece.role:
            text.append(f"{piece.role}: ", style=ROLE)
    else:
        _add_slot(text, piece)


def _add_slot(text: Text, slot: Slot) -> None:
    shown = slot.texts[0] if slot.texts else "".join(slot.partial)
    if slot.failure is not None:
        text.append(f"{shown}✗ {slot.failure.message}", style=FAILED)
    else:
        text.append(shown or "…", style=CHOSEN if slot.choices else GENERATED)


def nodes_table(graph: RequestGraph) -> Table:
    """One line a node that did something: tokens and time. Turn marks are left out."""
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("node", "lane", "what", "text"):
        table.add_column(title, no_wrap=True)
    for title in ("tokens", "cached", "forced", "accepted", "generated", "ms"):
        table.add_column(title, justify="right", no_wrap=True, min_width=max(6, len(title)))
    for node in graph.nodes:
        if node.stats is not None and node.kind in ("append", "generate", "select", "join"):
            table.add_row(*_row(node))
    return table


def _row(node: GraphNode) -> tuple[RenderableType, ...]:
    stats = node.stats
    assert stats is not None, "checked by the caller"
    name = getattr(node.op, "name", "")
    style = {"generate": GENERATED, "select": CHOSEN}.get(node.kind, GIVEN)
    given = stats.forced_tokens + stats.accepted_tokens
    made = stats.tokens - given if node.kind == "generate" else 0
    return (
        str(node.id),
        str(node.op.lane),
        Text(f"{node.kind} {name}".strip(), style=style),
        Text(_snippet(node), style=style),
        _count(stats.tokens),
        Text(_count(stats.cached_tokens), style=CACHED),
        Text(_count(stats.forced_tokens), style=FORCED),
        Text(_count(stats.accepted_tokens), style=ACCEPTED),
        Text(_count(made), style=GENERATED),
        f"{1e3 * (stats.end_s - stats.start_s):.1f}",
    )


def _snippet(node: GraphNode) -> str:
    parts = getattr(node.op, "parts", ())
    text = node.values[0] if node.values else "".join(p for p in parts if isinstance(p, str))
    text = text.replace("\n", "⏎")
    return text if len(text) <= MAX_SNIPPET else text[: MAX_SNIPPET - 1] + "…"


def _count(number: int) -> str:
    return str(number) if number else "·"
