"""Adapters that come with the package: what each is called, what it is for, and where it lies.

Invariant: a name leads to the same files in a checkout and in an installed wheel; a folder that
exists is that folder, whatever it is called. Reads no adapter: the runtime does, or PEFT.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

from branchline.runtime.errors import AdapterDamaged
from branchline.runtime.loading.assets import assets_folder


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """An adapter with a name.

    Attributes:
        name: what users write.
        base: name of the model it changes.
        description: one line for people.
        folder: below the package's `assets`.
    """

    name: str
    base: str
    description: str
    folder: str

    @property
    def path(self) -> Path:
        """Its folder, in PEFT's format.

        Raises:
            AdapterDamaged: the package was installed without its assets.
        """
        assets = assets_folder()
        if assets is None:
            raise AdapterDamaged(
                "the adapters of the package are not installed",
                hint="Install branchline again: pip install --force-reinstall --no-deps branchline "
                "(in a checkout: pip install -e .).",
            )
        return assets / self.folder


ADAPTERS: tuple[AdapterEntry, ...] = (
    AdapterEntry(
        name="smollm2-135m-extract",
        base="smollm2-135m",
        description="a text becomes an order, event or contact as JSON (Apache-2.0)",
        folder="adapters/extract",
    ),
    AdapterEntry(
        name="smollm2-135m-sql",
        base="smollm2-135m",
        description="tables and a question become a SQLite query (Apache-2.0)",
        folder="adapters/sql",
    ),
)


def list_adapters() -> tuple[AdapterEntry, ...]:
    """Every adapter that has a name."""
    return ADAPTERS


def adapter_folder(name_or_path: str | PathLike[str]) -> Path:
    """The folder of an adapter: an existing path, or a name of `ADAPTERS`.

    Raises:
        AdapterDamaged: neither; names those there are.
    """
    text = fspath(name_or_path)
    local = Path(text).expanduser()
    if text.strip() and local.exists():
        return local
    for entry in ADAPTERS:
        if entry.name == text.strip().lower():
            return entry.path
    known = ", ".join(entry.name for entry in ADAPTERS)
    raise AdapterDamaged(
        f"{text!r} is no folder of an adapter, and no name of one",
        hint=f"Pass a folder in PEFT's format, or one of these names: {known}.",
    )
