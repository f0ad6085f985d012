"""Tables of a report, by rich. Knows nothing about what the columns mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TextIO


class Column(NamedTuple):
    """Heading of a column; `right` aligns figures."""

    name: str
    right: bool = False


def table(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], stream: TextIO
) -> None:
    """Print one table; never cuts a cell, whatever the width of the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        justify = "right" if column.right else "left"
        shown.add_column(column.name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        shown.add_row(*row)
    console = Console(file=stream)
    if not console.is_terminal:
        console = Console(file=stream, width=200)
    console.print(shown)
