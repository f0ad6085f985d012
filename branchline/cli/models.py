"""`branchline models list|pull|path`: a view of the catalogs, nothing more."""

from __future__ import annotations

import argparse
import logging
import sys

from branchline.runtime.errors import CatalogError
from branchline.runtime.loading.adapters import list_adapters
from branchline.runtime.loading.catalog import list_models as listing
from branchline.runtime.loading.catalog import model_path
from branchline.runtime.loading.catalog import pull as fetch

_WIDTH = 22
"""Of the column of names."""


def list_models(arguments: argparse.Namespace) -> int:
    """Every name, of models and adapters, what it is, and where it lies or could be had."""
    del arguments
    for entry in listing():
        here = str(entry.path) if entry.path else "not fetched; " + ", then ".join(entry.sources)
        _show(entry.name, entry.description, here)
        if entry.head:
            _more(f"draft head {entry.head}: speculative='eagle'")
    for adapter in list_adapters():
        _show(adapter.name, f"adapter of {adapter.base}: {adapter.description}", adapter.path)
    return 0


def _show(name: str, description: str, where: object) -> None:
    print(f"{name:<{_WIDTH}}{description}")
    _more(where)


def _more(said: object) -> None:
    print(f"{'':<{_WIDTH}}{said}")


def pull(arguments: argparse.Namespace) -> int:
    """Fetch a model unless it is here; prints its path."""
    log = logging.getLogger("branchline.fetch")
    log.addHandler(logging.StreamHandler(sys.stderr))
    log.setLevel(logging.INFO)
    print(fetch(arguments.model))
    return 0


def path(arguments: argparse.Namespace) -> int:
    """Print where a model lies, without fetching it."""
    found = model_path(arguments.model)
    if found is None:
        hint = f"Fetch it: branchline models pull {arguments.model}"
        raise CatalogError("the model is not on this machine", value=arguments.model, hint=hint)
    print(found)
    return 0
