"""Size budget of the source: lines of a file, a function, a class; arguments; fields.

    python tools/size_budget.py [folder or file …]

An exception is a comment in the file itself, with its reason:

    # size: file: a table of two hundred names
    # size: load_weights: one branch for each storage type reads better together

The report ends with line totals for each room and the difference to the last tag (or to the last
commit where there is no tag).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("branchline", "lang", "runtime", "kernels", "examples", "tools", "tests")

FILE_LINES = 500
FUNCTION_LINES = 80
CLASS_LINES = 300
POSITIONAL_ARGUMENTS = 8
CONSTRUCTOR_FIELDS = 20

EXCEPTION = re.compile(r"^\s*# size: ([\w.]+): (\S.*)$", re.MULTILINE)


class Finding(NamedTuple):
    """One thing over its budget. `name` is "file" or the qualified name of a function or class."""

    path: str
    line: int
    name: str
    message: str


def span(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Lines of a definition, its docstring not counted (documentation is not size)."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def fields(node: ast.ClassDef) -> int:
    """Attributes a constructor takes or sets: annotated class fields, or names set on self."""
    declared = sum(isinstance(item, ast.AnnAssign) for item in node.body)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            assigned = {
                target.attr
                for part in ast.walk(item)
                if isinstance(part, ast.Assign | ast.AnnAssign)
                for target in (part.targets if isinstance(part, ast.Assign) else [part.target])
                if isinstance(target, ast.Attribute)
                and isinstance(target.value, ast.Name)
                and target.value.id == "self"
            }
            return len(assigned)
    return declared


def definitions(
    body: list[ast.stmt], prefix: str = ""
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    """Every function and class below `body` with its qualified name."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            yield name, node
            yield from definitions(node.body, f"{name}.")


def findings_of(path: Path, source: str) -> list[Finding]:
    """What in one file is over the budget and not excused there."""
    shown = str(path)
    excused = {match[1] for match in EXCEPTION.finditer(source)}
    found: list[Finding] = []

    def check(line: int, name: str, what: str, size: int, limit: int) -> None:
        if size > limit and name not in excused:
            found.append(Finding(shown, line, name, f"{what}: {size}, budget {limit}"))

    check(1, "file", "lines", source.count("\n"), FILE_LINES)
    for name, node in definitions(ast.parse(source, filename=shown).body):
        if isinstance(node, ast.ClassDef):
            check(node.lineno, name, "lines of class", span(node), CLASS_LINES)
            check(node.lineno, name, "constructor fields", fields(node), CONSTRUCTOR_FIELDS)
        else:
            check(node.lineno, name, "lines of function", span(node), FUNCTION_LINES)
            positional = [*node.args.posonlyargs, *node.args.args]
            count = len(positional) - bool(positional and positional[0].arg in ("self", "cls"))
            check(node.lineno, name, "positional arguments", count, POSITIONAL_ARGUMENTS)
    return found


def source_files(only: list[str]) -> list[Path]:
    """Python files of the project, relative to its root."""
    starts = [Path(name) for name in only] or [Path(room) for room in ROOMS]
    files: list[Path] = []
    for start in starts:
        files += [start] if start.suffix == ".py" else sorted((ROOT / start).rglob("*.py"))
    return [path if not path.is_absolute() else path.relative_to(ROOT) for path in files]


def git(*arguments: str) -> str:
    """Output of a git command; empty where git or history is missing."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def difference() -> str:
    """Lines added and removed since the last tag, or in the last commit."""
    tag = git("describe", "--tags", "--abbrev=0")
    base = tag or "HEAD~1"
    summary = git("diff", "--shortstat", base, "--", "*.py")
    return f"since {base}: {summary or 'no change'}" if git("rev-parse", base) else "no history"


def main(only: list[str]) -> int:
    """Print the totals and what is over the budget; 1 if anything is."""
    found: list[Finding] = []
    totals: dict[str, tuple[int, int]] = {}
    for path in source_files(only):
        source = (ROOT / path).read_text(encoding="utf-8")
        found += findings_of(path, source)
        files, lines = totals.get(path.parts[0], (0, 0))
        totals[path.parts[0]] = (files + 1, lines + source.count("\n"))
    for item in found:
        print(f"{item.path}:{item.line}: {item.name}: {item.message}")
    for room, (files, lines) in totals.items():
        print(f"{room:<12}{files:>5} files {lines:>7} lines")
    print(f"{'total':<12}{sum(f for f, _ in totals.values()):>5} files", end=" ")
    print(f"{sum(n for _, n in totals.values()):>7} lines; {difference()}")
    if found:
        print("Over the budget: split it, or give the reason in the file: # size: NAME: reason")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
