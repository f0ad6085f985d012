"""Draft heads that ship with the package: a folder each, by name.

Invariant: a head that is named here is there, or the message says what to pass instead.
"""

from __future__ import annotations

from pathlib import Path

from branchline.runtime.errors import CatalogError, ModelLoadError
from branchline.runtime.loading.assets import assets_folder
from branchline.runtime.loading.catalog import default_catalog


def head_path(model: str, head: str | None) -> Path:
    """The directory of the draft head for a model.

    Args:
        model: catalog name or path of the model, as the operator gave it.
        head: a directory, or the name of a head that ships with the package; None = the one that
            the catalog names for the model.

    Raises:
        CatalogError: there is none.
        ModelLoadError: the directory does not exist.
    """
    if head is None:
        head = default_catalog().head(model)
        if head is None:
            raise CatalogError(
                "The catalog names no draft head for this model.",
                value=model,
                hint="Pass the directory of one as speculative_draft, or train one: "
                "branchline train-eagle.",
            )
    given = Path(head).expanduser()
    if given.is_dir():
        return given
    if Path(head).name == head:
        folder = _shipped(head)
        if folder is not None:
            return folder
    raise ModelLoadError(
        f"There is no draft head at {head}.",
        hint="Pass a directory with config.json and model.safetensors as speculative_draft.",
    )


def _shipped(name: str) -> Path | None:
    """The folder of a head in the package, if it is there."""
    assets = assets_folder()
    path = None if assets is None else assets / "speculative" / name
    return path if path is not None and (path / "config.json").is_file() else None
