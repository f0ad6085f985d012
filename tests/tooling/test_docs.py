"""Documents cannot rot: every Python block runs, every command parses, every named path exists.

A ```text block behind a ```python block is what that block prints.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

from branchline.cli.main import build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ROOMS = "branchline|lang|runtime|kernels|examples|tests|docs|tools"
NAMED = re.compile(rf"`((?:{ROOMS})/[\w./-]+)`")
MARK = "--- block "


class Block(NamedTuple):
    """A fenced block. `output` is the text block right behind it, if there is one."""

    language: str
    code: str
    output: str | None


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = list(FENCE.finditer(text))
    result = []
    for match, after in zip_longest(found, found[1:]):
        output = None
        if (
            after is not None
            and after[1] == "text"
            and not text[match.end() : after.start()].strip()
        ):
            output = after[2]
        result.append(Block(match[1], match[2], output))
    return result


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" for block in blocks(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_blocks_run_and_print_what_the_page_says(
    page: Path, tmp_path: Path, default_model: Path
) -> None:
    parts = [block for block in blocks(page) if block.language == "python"]
    program = "".join(
        f'print("{MARK}{number}", flush=True)\n{block.code}\n' for number, block in enumerate(parts)
    )
    script = tmp_path / "page.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
    )
    printed = re.split(rf"^{MARK}\d+\n", done.stdout, flags=re.MULTILINE)[1:]
    assert done.returncode == 0, f"block {len(printed) - 1}\n{done.stderr[-3000:]}"
    for number, block in enumerate(parts):
        if block.output is not None:
            assert printed[number] == block.output, f"block {number}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of_console_blocks_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for block in blocks(page):
        if block.language not in ("sh", "console"):
            continue
        for line in block.code.splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            words[:1] = [word.removeprefix(".venv/bin/") for word in words[:1]]
            if words[:1] == ["branchline"]:
                build_parser().parse_args(words[1:])
            elif words[:1] == ["make"] and len(words) > 1:
                assert re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE), line


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_and_named_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [path for path in NAMED.findall(text) if not (ROOT / path).exists()]
    assert not missing


def anchors(page: Path) -> set[str]:
    """What a link to a part of a page may name: its headings, as GitHub spells them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    words = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in HEADING.findall(text))
    return {word.strip().replace(" ", "-") for word in words}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_parts_of_pages_name_headings(page: Path) -> None:
    for target, anchor in ANCHOR.findall(page.read_text(encoding="utf-8")):
        assert anchor in anchors(page.parent / target if target else page), f"{target}#{anchor}"


def test_generated_pages_are_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "gen_docs.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") < 200
