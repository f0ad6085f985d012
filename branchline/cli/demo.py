"""`branchline demo`: the tour. Runs every example on one engine and shows what each program did."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import pkgutil
import time
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import branchline as bl
from branchline.cli.options import engine_settings
from branchline.cli.show import CHOSEN, GENERATED, GIVEN, program_text
from branchline.runtime.errors import InvalidRequest

MAX_ROWS = 4
MAX_LINES = 14
BATCH_LINES = 2


def example_names(only: list[str]) -> list[str]:
    """Module names of the numbered examples, those that begin with a name in `only`.

    Raises:
        InvalidRequest: nothing begins so.
    """
    package = importlib.import_module("branchline.examples")
    names = sorted(item.name for item in pkgutil.iter_modules(package.__path__))
    names = [name for name in names if name[:2].isdigit()]
    chosen = [name for name in names if not only or name.startswith(tuple(only))]
    if not chosen:
        hint = f"Known: {', '.join(names)}."
        raise InvalidRequest("no such example", value=" ".join(only), hint=hint)
    return chosen


def demo(arguments: argparse.Namespace) -> int:
    """Run the tour."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=100)
    names = example_names(arguments.only)
    begin = time.perf_counter()
    with console.status("loading the model"):
        engine = bl.Engine(**engine_settings(arguments))
    info = engine.info()
    console.print(f"[bold]branchline[/] on {info['model']}, ready in {_seconds(begin)}")
    legend = [("given text", GIVEN), ("written by the model", GENERATED)]
    legend.append(("chosen by select", CHOSEN))
    console.print(Text(" · ").join(Text(*item) for item in legend))
    begin = time.perf_counter()
    try:
        with engine:
            for name in names:
                _show_example(console, name)
    finally:
        engine.close()
    console.print(f"\nthe tour took {_seconds(begin)}")
    return 0


def _show_example(console: Console, name: str) -> None:
    module = importlib.import_module(f"branchline.examples.{name}")
    title, _, about = (module.__doc__ or name).strip().partition("\n")
    console.print()
    console.rule(Text(title.rstrip("."), style="bold"), align="left", style="dim")
    console.print(Padding(Text(about.strip().replace("\n", " "), style="dim"), (0, 2)))
    said = io.StringIO()
    with contextlib.redirect_stdout(said), console.status(f"running {name}"):
        states: list[bl.State] = module.main()
    console.print(_table(states))
    printed = said.getvalue().strip()
    console.print(Padding(Text.assemble(("it prints\n", "dim"), _short(Text(printed))), (0, 2)))


def _table(states: list[bl.State]) -> Table:
    table = Table(box=box.ROUNDED, border_style="dim", expand=True, show_footer=len(states) > 1)
    usages = [state.usage for state in states]
    columns: list[tuple[str, Iterator[int]]] = [
        ("prompt", (usage.prompt_tokens for usage in usages)),
        ("cached", (usage.cached_tokens for usage in usages)),
        ("forced", (usage.forced_tokens for usage in usages)),
        ("generated", (usage.output_tokens for usage in usages)),
    ]
    table.add_column("program", footer="all", no_wrap=True)
    table.add_column("text", ratio=1)
    for title, counts in columns:
        table.add_column(title, justify="right", footer=str(sum(counts)), no_wrap=True)
    table.add_column("ms", justify="right", no_wrap=True)
    for state, usage in list(zip(states, usages, strict=True))[:MAX_ROWS]:
        text = program_text(state.graph)
        table.add_row(
            state.graph.name,
            _short(text) if len(states) == 1 else _tail(text),
            str(usage.prompt_tokens),
            str(usage.cached_tokens),
            str(usage.forced_tokens),
            str(usage.output_tokens),
            f"{1e3 * _duration(state):.0f}",
            end_section=True,
        )
    if len(states) > MAX_ROWS:
        table.add_row("…", Text(_more(len(states) - MAX_ROWS, "program"), style="dim"))
    return table


def _duration(state: bl.State) -> float:
    """Seconds from the program's first to its last piece of work."""
    stats: list[Any] = [node.stats for node in state.graph.nodes if node.stats is not None]
    if not stats:
        return 0.0
    return float(max(item.end_s for item in stats) - min(item.start_s for item in stats))


def _short(text: Text) -> Text:
    lines = text.split("\n")
    if len(lines) <= MAX_LINES:
        return text
    kept = Text("\n").join(lines[:MAX_LINES])
    return kept.append(f"\n… {_more(len(lines) - MAX_LINES, 'line')}", style="dim italic")


def _more(count: int, what: str) -> str:
    return f"{count} more {what}{'s' * (count > 1)}"


def _tail(text: Text) -> Text:
    """The end: programs of a batch begin with the same text."""
    lines = text.split("\n")
    if len(lines) <= BATCH_LINES:
        return text
    return Text("… ", style="dim").append_text(Text("\n").join(lines[-BATCH_LINES:]))


def _seconds(begin: float) -> str:
    return f"{time.perf_counter() - begin:.1f} s"
