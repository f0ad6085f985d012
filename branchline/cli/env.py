"""`branchline env`: what a bug report needs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from branchline.runtime.bench.environment import cpu, versions
from branchline.runtime.config.env import cache_dir


def env(arguments: argparse.Namespace) -> int:
    """Print versions, CPU, kernels and the model cache."""
    found: dict[str, dict[str, Any]] = {
        "versions": dict(versions()),
        "cpu": cpu(),
        "kernels": kernels(),
        "grammars": grammars(),
        "models": models(),
    }
    if arguments.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, entries in found.items():
        print(title)
        for key, value in entries.items():
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            print(f"  {key:<16}{shown}")
    return 0


def kernels() -> dict[str, Any]:
    """Whether the native kernels can be used here, for which instruction set, or why not.

    Compiles them if they have not been, as the first engine would.
    """
    try:
        from branchline.kernels.cpu.binding import load_library
        from branchline.kernels.errors import KernelBuildError
    except ModuleNotFoundError as error:
        return {"native": "no", "why": f"the module {error.name!r} is not installed"}
    try:
        library = load_library()
    except KernelBuildError as error:
        return {"native": "no", "why": str(error)}
    return {"native": "yes", "instructions": library.isa}


def grammars() -> dict[str, Any]:
    """Which backend enforces each kind of constraint here, and why, or why none can."""
    try:
        from branchline.runtime.grammar.choice import explained
    except ModuleNotFoundError as error:
        return {"available": "no", "why": f"the module {error.name!r} is not installed"}
    return explained()


def models() -> dict[str, Any]:
    """The cache folder, and the models of the catalog that are in it."""
    from branchline.runtime.loading.catalog import list_models

    found: dict[str, Any] = {"folder": str(cache_dir())}
    for entry in list_models():
        found[entry.name] = str(entry.path) if entry.path else "not fetched"
    return found
