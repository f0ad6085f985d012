"""The source keeps its own rules: no private paths, no unfinished marks, no unsafe calls."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOME = re.compile(r"(?<![\w.])/(?:home|Users|root|work)/[A-Za-z0-9_.]+|\b[A-Z]:\\Users\\")
UNSAFE_IMPORTS = {"pickle", "dill", "marshal", "shelve", "cloudpickle"}
UNSAFE_CALLS = {"eval", "exec"}
MARKS = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")


def tracked(*patterns: str) -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for name in listing.stdout.splitlines() if (path := ROOT / name).exists()]


SOURCE = [
    path
    for path in tracked("*.py")
    if path.relative_to(ROOT).parts[0] in ("branchline", "lang", "runtime", "kernels", "examples")
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_no_absolute_home_paths() -> None:
    found = [
        f"{name_of(path)}: {match[0]}"
        for path in tracked()
        if path.suffix not in (".gguf", ".png") and path != Path(__file__)
        for match in [HOME.search(path.read_text(encoding="utf-8", errors="replace"))]
        if match
    ]
    assert not found


def test_no_unfinished_marks() -> None:
    found = [
        name_of(path)
        for path in SOURCE
        if MARKS.search(text := path.read_text(encoding="utf-8"))
        or "raise NotImplementedError" in text
    ]
    assert not found


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_no_unsafe_code_and_no_bare_except(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots = {alias.name.partition(".")[0] for alias in node.names}
            assert not roots & UNSAFE_IMPORTS, f"{name_of(path)}:{node.lineno}"
        elif isinstance(node, ast.ImportFrom):
            root = (node.module or "").partition(".")[0]
            assert root not in UNSAFE_IMPORTS, f"{name_of(path)}:{node.lineno}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in UNSAFE_CALLS, f"{name_of(path)}:{node.lineno}"
        elif isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{name_of(path)}:{node.lineno}: bare except"


@pytest.mark.parametrize("path", SOURCE, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert len(docstring) > 10, name_of(path)
