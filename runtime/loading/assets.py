"""Where the trained files that ship with the package lie. Knows nothing of what they are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def assets_folder() -> Path | None:
    """The folder of the package's assets; None where they are not installed."""
    spec = find_spec("branchline.assets")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent
