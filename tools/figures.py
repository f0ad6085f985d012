"""Pictures and README tables of the figures that docs/benchmarks.md has.

Invariant: a figure is written once, in a table of that page below a comment `<!-- table: NAME -->`;
everything else that shows it is made from there, and the same tables give the same files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- figures: `make docs` copies them from docs/benchmarks.md -->", "<!-- end -->"

Table = dict[str, dict[str, str]]
"""Label of a row to its cells by the name of their column."""

_COLOURS = {"vLLM": "#d0d7de", "SGLang": "#8b949e", "branchline": "#1f6feb"}
_TARGET = "#d1242f"
_LINE, _BAR, _GAP = 14, 10, 10
_LABEL, _WIDTH, _VALUE, _HEAD = 130, 250, 70, 58


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of one workload: a cell for each engine, and the target's (may hold no number)."""

    label: str
    cells: Sequence[tuple[str, str]]
    target: str


def table(page: str, name: str) -> Table:
    """The table of a page that stands below the comment with its name.

    Raises:
        ValueError: there is none, or a row has not as many cells as the head.
    """
    _, found, rest = page.partition(f"<!-- table: {name} -->\n")
    lines = rest.lstrip("\n").splitlines()
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    if not found or len(rows) < 3:
        raise ValueError(f"no table below <!-- table: {name} -->")
    head, body = rows[0], rows[2:]
    for row in body:
        if len(row) != len(head):
            raise ValueError(f"table {name}: row {row[0]!r} has {len(row)} cells of {len(head)}")
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in body}


def seconds(cell: str) -> float | None:
    """The number that a cell begins with (the lower end of a range), None without one."""
    found = re.match(r"\d+(?:\.\d+)?", cell)
    return float(found[0]) if found else None


def shown(cell: str) -> str:
    """A cell without what is in brackets behind its figure."""
    return cell.partition(" (")[0]


def offline_chart(page: str) -> str:
    """Time of each offline workload, both shapes."""
    panels = {
        shape: [
            Row(label.partition(":")[0], _engines(cells, ""), cells["target"])
            for label, cells in table(page, f"offline-{shape.lower()}").items()
        ]
        for shape in ("8B", "0.6B")
    }
    return chart(panels, "Seconds on one H100, each beside the slowest of its workload")


def programs_chart(page: str) -> str:
    """Time of each program, alone and 64 at once."""
    panels = {
        heading: [
            Row(label, _engines(cells, f", {count}"), cells[f"target, {count}"])
            for label, cells in table(page, "programs").items()
        ]
        for count, heading in (("1", "one program"), ("64", "64 programs at once"))
    }
    return chart(
        panels, "Seconds of whole programs on one H100, each beside the slower of its kind"
    )


def _engines(cells: dict[str, str], suffix: str) -> list[tuple[str, str]]:
    return [(name, cells[name + suffix]) for name in _COLOURS if name + suffix in cells]


def chart(panels: dict[str, list[Row]], title: str) -> str:
    """Panels of grouped bars side by side; a bar is as long as its share of the row's longest.

    Args:
        panels: heading to its rows.
        title: for readers who do not see it, and the headline.

    Returns:
        One SVG document that needs nothing from elsewhere. A red line marks a row's target.
    """
    across = _LABEL + _WIDTH + _VALUE
    height, parts = 0, [_text(12, 20, title, bold=True)]
    names = dict.fromkeys(name for rows in panels.values() for row in rows for name, _ in row.cells)
    x = 12
    for name in names:
        parts.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{_COLOURS[name]}"/>')
        parts.append(_text(x + 15, 39, name))
        x += 90
    parts.append(f'<path d="M{x} 29v12" stroke="{_TARGET}" stroke-width="2"/>')
    parts.append(_text(x + 8, 39, "target"))
    for number, (heading, rows) in enumerate(panels.items()):
        left, y = number * across, _HEAD + 12
        parts.append(_text(left + _LABEL, y, heading, bold=True))
        for row in rows:
            y += _GAP
            parts += _bars(row, left, y)
            y += _LINE * len(row.cells)
        height = max(height, y + _GAP)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {len(panels) * across} {height}" '
        'role="img" font-family="system-ui,sans-serif" font-size="11">'
    )
    back = f'<rect width="{len(panels) * across}" height="{height}" fill="#ffffff"/>'
    return "\n".join([head, f"<title>{escape(title)}</title>", back, *parts, "</svg>"]) + "\n"


def _bars(row: Row, left: int, top: int) -> list[str]:
    """The bars of one row and, through all of them, its target."""
    values = [(name, cell, seconds(cell) or 0.0) for name, cell in row.cells]
    target = seconds(row.target)
    longest = max(*(value for _, _, value in values), target or 0.0)
    middle = top + _LINE * len(values) / 2 + 4
    parts = [_text(left + _LABEL - 8, middle, row.label, anchor="end")]
    start = left + _LABEL
    for number, (name, cell, value) in enumerate(values):
        y, width = top + number * _LINE, round(_WIDTH * value / longest, 1)
        parts.append(
            f'<rect x="{start}" y="{y}" width="{width}" height="{_BAR}" fill="{_COLOURS[name]}"/>'
        )
        parts.append(_text(start + _WIDTH + 6, y + _BAR - 1, shown(cell)))
    if target is not None:
        at = round(start + _WIDTH * target / longest, 1)
        down = _LINE * len(values)
        line = f'<path d="M{at} {top - 2}v{down}" stroke="{_TARGET}" stroke-width="1.5"/>'
        parts.append(line)
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} fill="#24292f"{weight}>{escape(text)}</text>'


SHOWN = ("decode1", "decode64", "shared256", "json32")
"""The workloads whose figures the README has."""


def date_of(page: str, heading: str) -> str:
    """The first date below a heading: that of its figures.

    Raises:
        ValueError: there is none.
    """
    found = re.search(r"\d{1,2} [A-Z]\w+ \d{4}", page.partition(f"\n## {heading}\n")[2])
    if found is None:
        raise ValueError(f"no date below ## {heading}")
    return found[0]


def readme_table(page: str) -> str:
    """Some rows of both shapes, beside the faster peer of each."""
    lines = [
        "One H100 80GB, random weights in bf16 of the shapes of Llama-3.1-8B and Qwen3-0.6B,",
        f"{date_of(page, 'One H100')}, median of 3 (`branchline bench offline --workload gpu`);",
        "beside it the faster of vLLM 0.24 and SGLang 0.5.15 on the same token ids:",
        "",
        "| workload, seconds | 8B | faster peer | 0.6B | faster peer |",
        "|---|---|---|---|---|",
    ]
    shapes = [table(page, "offline-8b"), table(page, "offline-0.6b")]
    for label in shapes[0]:
        if label.partition(":")[0] in SHOWN:
            cells = [label.partition(": ")[2]]
            for shape in shapes:
                row = shape[label]
                peer = min((row["vLLM"], row["SGLang"]), key=lambda cell: seconds(cell) or 0.0)
                cells += [shown(row["branchline"]), peer]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def readme_cpu(page: str) -> str:
    """What the default model does on two threads of a CPU, in a sentence."""
    rows = table(page, "cpu")
    ours = next(cells for label, cells in rows.items() if label.startswith("**branchline"))
    decode, first, *_, start, megabytes = (
        shown(cell.rpartition(" / ")[2]) for cell in ours.values()
    )
    return (
        f"On 2 cores of a CPU the default model (4-bit file) decodes {decode} tokens/s, has the\n"
        f"first token of 1,024 after {first} s, starts in {start} s and takes at most {megabytes}\n"
        f"MB ({date_of(page, 'CPU')}, `branchline bench offline --threads 2`, `bench start`).\n"
    )


def readme(text: str, page: str) -> str:
    """The README with its figures as the page has them.

    Raises:
        ValueError: the README has no place for them.
    """
    before, found, rest = text.partition(f"{BEGIN}\n")
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError("README.md has no place for figures")
    return f"{before}{BEGIN}\n\n{readme_table(page)}\n{readme_cpu(page)}\n{END}{after}"


def of_page(name: str) -> str:
    """What a file that shows figures holds: a picture below docs/assets, or README.md."""
    page = PAGE.read_text(encoding="utf-8")
    if name == "README.md":
        return readme(README.read_text(encoding="utf-8"), page)
    return {"bench-offline": offline_chart, "bench-programs": programs_chart}[Path(name).stem](page)


FILES = ("README.md", "docs/assets/bench-offline.svg", "docs/assets/bench-programs.svg")
