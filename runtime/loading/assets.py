"""Where the trained files that ship with the package lie. Knows nothing of what they are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from branchline.runtime.errors import CatalogError


def assets_folder() -> Path:
    """The folder of the package's assets.

    Raises:
        CatalogError: they are not installed.
    """
    spec = find_spec("branchline.assets")
    if spec is None or spec.origin is None:
        raise CatalogError(
            "The trained files of the package are not installed.",
            hint="Install branchline again: pip install --force-reinstall --no-deps branchline "
            "(in a checkout: pip install -e .).",
        )
    return Path(spec.origin).parent
