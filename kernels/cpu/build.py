"""Compiles the native CPU library at first use and keeps it in the user's cache folder.

Invariant: a library file is named by a hash of its sources, flags, compiler and machine, and
appears by an atomic rename, so a file that exists is whole and fits; two processes never build at
once.
`python -m branchline.kernels.cpu.build` builds ahead of time. Knows nothing of ops.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from branchline.kernels.errors import KernelBuildError

__all__ = ["build_library", "cache_folder", "find_compiler"]

_LOG = logging.getLogger(__name__)
_SOURCES = Path(__file__).parent
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=off",  # every rounding is where the source says
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-w",
    "-shared",
    "-fPIC",
    "-pthread",
)
_HELP = "install g++ or clang++ (Debian and Ubuntu: apt install g++) or set CXX"


def cache_folder() -> Path:
    """Where compiled libraries live: $XDG_CACHE_HOME or ~/.cache, then branchline/kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "branchline" / "kernels"


def find_compiler() -> str:
    """Path of the C++ compiler: $CXX, g++ or clang++.

    Raises:
        KernelBuildError: if there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        path = shutil.which(name) if name else None
        if path:
            return path
    raise KernelBuildError(f"no C++ compiler found: {_HELP}")


def _cpu_identity() -> str:
    """Names the instruction set that -march=native will pick."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = [ln for ln in info.read_text().splitlines() if ln.split("\t")[0].strip() in wanted]
    return platform.machine() + "\n".join(sorted(set(lines)))


def _key(compiler: str, flags: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for path in sorted([*_SOURCES.glob("*.h"), *_SOURCES.glob("*.cpp")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    stamp = str(Path(compiler).resolve().stat().st_mtime_ns)
    for text in (compiler, stamp, *flags, _cpu_identity()):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:24]


def build_library(march: str = "native", folder: Path | None = None) -> Path:
    """The path of the compiled library, compiled now if the cache does not hold it.

    Args:
        march: value of the compiler's -march; "native" for the machine at hand.
        folder: cache folder, `cache_folder()` if not given.

    Raises:
        KernelBuildError: no compiler, a compile error (its output is quoted), or no writable cache.
    """
    compiler = find_compiler()
    flags = [*_FLAGS, f"-march={march}" if march != "native" or _is_x86() else "-mcpu=native"]
    folder = folder or cache_folder()
    target = folder / f"{_key(compiler, flags)}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "build.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                _compile(compiler, flags, target)
    except OSError as error:
        raise KernelBuildError(
            f"cannot write the kernel cache {folder}: {error}; make it writable or set "
            "XDG_CACHE_HOME"
        ) from error
    return target


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _compile(compiler: str, flags: Sequence[str], target: Path) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        output = Path(scratch) / target.name
        command = [compiler, *flags, str(_SOURCES / "library.cpp"), "-o", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelBuildError(
                f"{' '.join(command)} failed:\n{done.stderr[-4000:]}\n{_HELP} of a recent version"
            )
        os.replace(output, target)
    _LOG.info("compiled the CPU kernels in %.1f s: %s", time.monotonic() - start, target)


if __name__ == "__main__":
    sys.stdout.write(f"{build_library()}\n")
