"""A throw-away folder in which the source looks like the installed package.

The import name of `lang/x.py` is `branchline.lang.x`. The installed package knows that through
pyproject's package-dir; static tools do not, so they run over this tree of links instead.
"""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def package_dirs() -> dict[str, Path]:
    """Import name -> source folder, as pyproject maps them."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        mapping: dict[str, str] = tomllib.load(file)["tool"]["setuptools"]["package-dir"]
    return {name: ROOT / folder for name, folder in mapping.items()}


@contextmanager
def linktree() -> Iterator[Path]:
    """Yield a folder that holds `branchline/` with every mapped package linked below it."""
    with tempfile.TemporaryDirectory(prefix="branchline-tree-") as folder:
        top = Path(folder) / "branchline"
        top.mkdir()
        for name, source in package_dirs().items():
            if name == "branchline":
                for path in source.iterdir():
                    if path.name != "__pycache__":
                        (top / path.name).symlink_to(path)
            else:
                (top / name.removeprefix("branchline.")).symlink_to(source)
        yield Path(folder)
