"""mypy --strict over the source as it is installed, then over the tools.

    python tools/typecheck.py [path under the source, e.g. runtime/memory …]

With paths, only errors in them are shown (mypy still reads everything they import).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from linktree import ROOT, linktree


def source_name(line: str, tree: Path) -> str:
    """mypy's line with the path that the repository uses."""
    line = line.replace(f"{tree}{os.sep}", "").replace(f"{ROOT}{os.sep}", "")
    for room in ("lang", "runtime", "kernels", "examples"):
        prefix = f"branchline{os.sep}{room}{os.sep}"
        if line.startswith(prefix):
            return line.removeprefix(f"branchline{os.sep}")
    return line


def main(only: list[str]) -> int:
    """Return mypy's exit status (errors outside `only` are not counted when it is given)."""
    failed = 0
    with linktree() as tree:
        command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary"]
        command += ["-p", "branchline"]
        env = dict(os.environ, MYPYPATH=str(tree))
        done = subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)
        lines = [source_name(line, tree) for line in done.stdout.splitlines()]
        shown = [line for line in lines if not only or line.startswith(tuple(only))]
        print("\n".join([*shown, done.stderr]).strip() or "mypy: branchline: no errors")
        if done.returncode > 1:
            return done.returncode
        failed = sum(": error:" in line for line in shown)
        if not only or any(path.startswith("tools") for path in only):
            scripts = sorted(str(path) for path in (ROOT / "tools").glob("*.py"))
            tools = [*command[:-2], "--follow-imports", "silent", *scripts]
            failed += subprocess.run(tools, cwd=tree, env=env).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main([path.rstrip("/") for path in sys.argv[1:]]))
