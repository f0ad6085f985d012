"""Adapters as the outside sees them, and how a version of one is told from another.

Law: what is computed with one version of an adapter is never taken for another's: the prefix
cache's namespace contains name and version, and a request keeps the version that it began with,
whatever is loaded under the name meanwhile. Needs neither numpy nor torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from branchline.runtime.errors import AdapterNotFound, InvalidRequest

AdapterState = Literal["device", "loading", "host", "disk"]
"""Where an adapter's weights are: in a slot, on the way to one, in host memory, or in its files
alone."""

MAX_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]*")


class AdapterInfo(msgspec.Struct, kw_only=True, frozen=True):
    """One version of an adapter.

    Attributes:
        version: 1 for the first one loaded under the name, then 2, …
        path: the folder it was read from; "" for one that was sent.
        rank: the largest of its ranks.
        targets: kinds of layers that it changes, such as "q_proj", sorted.
        base: model that it says it was made for; "" if it does not say.
        nbytes: of its weights in a slot.
        pinned: it never leaves its slot.
        running: sequences that use it and have not ended.
    """

    name: str
    version: int
    path: str = ""
    rank: int = 0
    targets: tuple[str, ...] = ()
    base: str = ""
    nbytes: int = 0
    state: AdapterState = "disk"
    pinned: bool = False
    running: int = 0


class AdapterFiles(msgspec.Struct, kw_only=True):
    """An adapter that is sent instead of read from a folder.

    Attributes:
        config: contents of adapter_config.json.
        weights: contents of adapter_model.safetensors.
    """

    config: bytes
    weights: bytes


AdapterSource = str | AdapterFiles
"""A folder in PEFT's format, the name of one that comes with the package, or an adapter's files."""


def check_adapter_name(name: str) -> str:
    """`name` if an adapter can be called so.

    Raises:
        InvalidRequest: it is empty, too long, or has characters that do not belong in a name.
    """
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidRequest(
            "an adapter cannot be called so",
            value=name,
            hint=f"Use at most {MAX_NAME} letters, digits and . _ : / - (the first one a letter or "
            "digit).",
        )
    return name


def check_adapter_source(source: AdapterSource | os.PathLike[str]) -> AdapterSource:
    """`source` if an adapter can come from it, a path as text.

    Raises:
        InvalidRequest: it is no path, no name and no files.
    """
    if isinstance(source, os.PathLike):
        return os.fspath(source)
    if not isinstance(source, str | AdapterFiles):
        raise InvalidRequest(
            "an adapter cannot be loaded from this",
            value=source,
            hint="Give a folder in PEFT's format, or the name of one that comes with the package.",
        )
    return source


def adapter_not_found(name: str, known: Iterable[str]) -> AdapterNotFound:
    """The error for a name that no adapter has."""
    names = sorted(known)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return AdapterNotFound(
        "no adapter of this name is loaded",
        value=name,
        hint=f"Loaded: {shown}."
        if names
        else "None is: name it at the start (adapters=, --adapter), or load it with load_adapter.",
    )


def adapter_namespace(namespace: str, name: str, version: int) -> str:
    """Namespace of the prefix cache for what one version of an adapter computes.

    Injective: callers' namespaces are arbitrary text, so they come last, behind a part whose end is
    certain (a name has no "@"), and what the base model computes in a namespace keeps its name
    unless that could be mistaken for such a part.
    """
    if name:
        return f"@{name}@{version}@{namespace}"
    return f"@@{namespace}" if namespace.startswith("@") else namespace


@dataclass(slots=True, eq=False)
class AdapterVersion:
    """One version of an adapter, as the scheduler and its steps know it.

    Attributes:
        slot: of the device; -1 while it is in none.
        sequences: that use it and have not ended.
        rows: of those, how many are being computed; its slot stays its own meanwhile.
    """

    name: str
    number: int
    slot: int = -1
    sequences: int = 0
    rows: int = 0

    @property
    def idle(self) -> bool:
        """Nothing uses it."""
        return self.sequences == 0 and self.rows == 0
