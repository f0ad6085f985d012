"""Every environment variable branchline reads, in one table, and the only place that reads them.

Invariant: a variable not in `VARIABLES` cannot be read; an empty value is the same as none.
Variables that other libraries read for themselves (pip's, the hub client's endpoint and token)
are theirs and not listed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLES: Final[Mapping[str, str]] = {
    "BRANCHLINE_CACHE": "folder for models and partial downloads",
    "XDG_CACHE_HOME": "folder for caches; branchline uses `branchline` in it",
    "BRANCHLINE_API_KEY": "API keys of `branchline serve`, separated by commas",
    "BRANCHLINE_ADMIN_KEY": "admin keys of `branchline serve`, separated by commas",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "collector that `branchline serve` sends spans to, by OTLP over "
    "HTTP; not set = no spans",
    "HF_HUB_OFFLINE": "1, true, yes or on: do not ask the Hugging Face hub",
}
"""Name to meaning."""

_TRUE = frozenset({"1", "true", "yes", "on"})


def read(name: str) -> str:
    """Value of a declared variable, stripped; "" if it is not set."""
    if name not in VARIABLES:
        raise KeyError(f"{name} is not declared in env.VARIABLES")
    return os.environ.get(name, "").strip()


def cache_dir() -> Path:
    """Folder for what can be fetched again; it need not exist yet.

    `BRANCHLINE_CACHE`, else `branchline` in `XDG_CACHE_HOME`, else `~/.cache/branchline`.
    """
    own = read("BRANCHLINE_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = read("XDG_CACHE_HOME")
    base = Path(shared).expanduser().absolute() if shared else Path.home() / ".cache"
    return base / "branchline"


def hub_offline() -> bool:
    """Whether the user forbids asking the Hugging Face hub."""
    return read("HF_HUB_OFFLINE").lower() in _TRUE
