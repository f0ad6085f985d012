"""Figures stand once: pictures and the README's table say what the tables of the page say."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = """\
# Figures

## One H100

Measured on 3 May 2027.

<!-- table: offline-8b -->

| 8B | vLLM | SGLang | branchline | target |
|---|---|---|---|---|
| decode1: 1 × 128 → 256 | 2.0 | 1.0 | 0.5 (1 %) | 0.8 (320 tok/s) |
| json32: 32 → JSON | 1.5–2.5 | 1.25 | 1.0 (0 %) | free32 |

<!-- table: offline-0.6b -->

| 0.6B | vLLM | SGLang | branchline | target |
|---|---|---|---|---|
| decode1: 1 × 128 → 256 | 0.4 | 0.3 | 0.2 | 0.25 |
| json32: 32 → JSON | 0.9 | 0.8 | 0.1 | free32 |

## CPU

Peers, May 2026; branchline 4 May 2027.

<!-- table: cpu -->

| engine | decode 1T / 2T | TTFT 1T / 2T | 16 at once | prefix | start | peak MB |
|---|---|---|---|---|---|---|
| **branchline 0.1.0** | 10 (2 %) / 20 (1 %) | 2.5 (3 %) / 1.5 (0 %) | 1 / 2 | 3 / 4 | 1.9 | 641 |
| other | 1 / 2 | 3 / 4 | 5 / 6 | 7 / 8 | 9 | 10 |
"""


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import figures

    return figures


def rectangles(svg: str, colour: str) -> list[float]:
    """Widths of the bars of one colour; the first is the legend's."""
    return [
        float(item.attrib["width"])
        for item in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
        if item.attrib["fill"] == colour
    ][1:]


def test_bars_are_as_long_as_their_share_of_the_slowest_of_their_row(figures: ModuleType) -> None:
    svg = figures.offline_chart(PAGE)
    longest = figures._WIDTH
    ours = rectangles(svg, figures._COLOURS["branchline"])
    assert ours == [
        pytest.approx(longest * share, abs=0.1) for share in (0.25, 1 / 1.5, 0.5, 0.1 / 0.9)
    ]


def test_every_figure_of_the_table_is_written_beside_its_bar(figures: ModuleType) -> None:
    words = [item.text for item in ElementTree.fromstring(figures.offline_chart(PAGE)).iter()]
    for figure in ("2.0", "1.0", "0.5", "1.5–2.5", "1.25", "0.4", "0.3", "0.2", "0.9", "0.1"):
        assert figure in words


def test_targets_that_are_no_number_have_no_line(figures: ModuleType) -> None:
    legend, rows = 1, 2
    assert figures.offline_chart(PAGE).count("<path") == legend + rows


def test_the_readme_has_the_faster_peer_and_leaves_the_rest_alone(figures: ModuleType) -> None:
    text = f"before\n{figures.BEGIN}\nold\n{figures.END}\nafter\n"
    new = figures.readme(text, PAGE)
    assert "| 1 × 128 → 256 | 0.5 | 1.0 | 0.2 | 0.3 |\n" in new
    assert "| 32 → JSON | 1.0 | 1.25 | 0.1 | 0.8 |\n" in new
    assert (
        "decodes 20 tokens/s" in new
        and "after 1.5 s, starts in 1.9 s and takes at most 641\nMB" in new
    )
    assert "3 May 2027, median" in new and "(4 May 2027, " in new
    assert new.startswith("before\n") and new.endswith("\nafter\n") and "old" not in new
    assert figures.readme(new, PAGE) == new


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("no table here", "no table below"),
        (PAGE.replace("| 2.0 | 1.0 |", "| 2.0 |"), "has 3 cells of 4|has 4 cells of 5"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(figures: ModuleType, page: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        figures.offline_chart(page)


def test_a_changed_figure_makes_the_check_fail(tmp_path: Path) -> None:
    """What a table says and a picture does not is found before it is committed."""
    program = (
        "import gen_docs, figures, pathlib\n"
        f"page = pathlib.Path({str(tmp_path / 'page.md')!r})\n"
        "text = figures.PAGE.read_text('utf-8')\n"
        "ours = figures.table(text, 'offline-8b')\n"
        "cell = next(row['branchline'] for name, row in ours.items() if 'decode1' in name)\n"
        "page.write_text(text.replace(cell, '98.76'), 'utf-8')\n"
        "figures.PAGE = page\n"
        "raise SystemExit(gen_docs.main(['--check']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "tools", capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert re.findall(r"^(\S+) is out of date", done.stdout, re.MULTILINE) == [
        "README.md",
        "docs/assets/bench-offline.svg",
    ]
