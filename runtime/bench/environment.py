"""Where a figure was measured: machine, versions, kernels. Imports torch only if asked to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "llguidance",
    "xgrammar",
    "outlines-core",
    "gguf",
    "safetensors",
    "numpy",
    "msgspec",
    "pyzmq",
    "aiohttp",
)
_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
    "neon",
    "asimd",
)


def versions() -> dict[str, str]:
    """Package -> version, "not installed" where it is missing."""
    found = {"branchline": "", "python": platform.python_version()}
    for name in ("branchline", *_PACKAGES):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def cpu() -> dict[str, Any]:
    """Model, usable cores, and those instruction sets that the kernels care about."""
    model, flags = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = value
                break
    present = set(flags.split())
    return {"model": model, "cores": usable_cores(), "flags": [f for f in _FLAGS if f in present]}


def system() -> dict[str, Any]:
    """Operating system, memory in MB, and where sockets of processes would lie."""
    found: dict[str, Any] = {"platform": platform.platform(), "temporary": tempfile.gettempdir()}
    try:
        import psutil
    except ModuleNotFoundError:
        return found
    memory = psutil.virtual_memory()
    return found | {"memory_mb": memory.total // 10**6, "free_mb": memory.available // 10**6}


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def header(info: dict[str, Any]) -> str:
    """Lines for the top of a report. info: what `Engine.info()` returned."""
    machine = cpu()
    found = versions()
    first = f"{machine['model']}, {machine['cores']} cores ({' '.join(machine['flags']) or '-'})"
    parts = [f"branchline {found['branchline']}", f"Python {found['python']}"]
    parts.append(f"torch {found['torch']}")
    parts.append(f"model {info['model']}")
    settings = info["settings"]
    parts += [f"{key} {settings[key]}" for key in ("dtype", "quantization", "threads")]
    lines = [first, ", ".join(parts)]
    lines += [f"  {item['setting']}: {item['value']} ({item['why']})" for item in info["decisions"]]
    return "\n".join(lines)
