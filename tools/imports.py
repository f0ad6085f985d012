"""The import contract of pyproject ([tool.importlinter]), checked over the installed layout."""

from __future__ import annotations

import os
import subprocess
import sys

from linktree import ROOT, linktree


def main() -> int:
    """Return import-linter's exit status."""
    with linktree() as tree:
        program = "from importlinter.cli import lint_imports_command as run; run()"
        (tree / "pyproject.toml").symlink_to(ROOT / "pyproject.toml")  # read from where it runs
        command = [sys.executable, "-c", program, "--no-cache"]
        env = dict(os.environ, PYTHONPATH=str(tree))
        return subprocess.run(command, cwd=tree, env=env).returncode


if __name__ == "__main__":
    raise SystemExit(main())
