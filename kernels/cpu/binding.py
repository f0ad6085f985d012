"""The native library as Python sees it: op descriptors and a runner with its own threads.

Invariant: `NativeOp` mirrors `Op` of pool.h field by field (checked by size at load) and `Kind` the
kinds of library.cpp in order. A call releases the interpreter lock. The module checks no operands.
"""

import ctypes
import os
import weakref
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

from branchline.kernels.cpu.build import build_library
from branchline.kernels.errors import KernelBuildError

__all__ = ["Format", "Kind", "NativeLibrary", "NativeOp", "Runner", "load_library", "usable_cores"]


class Kind(IntEnum):
    """What a native op does; the operands of each are listed in native_ops.py."""

    RESOLVE = 0
    EMBED = 1
    RMS = 2
    ADD_RMS = 3
    LINEAR = 4
    ROPE = 5
    ATTENTION = 6
    SILU_MUL = 7
    ADD = 8
    GATHER = 9
    BITMASK = 10
    ARGMAX = 11
    LOGSUMEXP = 12
    LORA = 13
    SCATTER = 14
    TOP = 15


class Format(IntEnum):
    """How a weight is stored."""

    Q4_1 = 0
    Q8_0 = 1
    F32 = 2
    BF16 = 3


class NativeOp(ctypes.Structure):
    """One op of a list: kind, live dimension of its rows, static sizes, constants, addresses."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("dim", ctypes.c_int32),
        ("i", ctypes.c_int32 * 8),
        ("f", ctypes.c_float * 2),
        ("p", ctypes.c_void_p * 12),
    )


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class NativeLibrary:
    """A loaded library.

    Attributes:
        isa: the instruction set it was compiled for, such as "avx512-vnni-bf16".
    """

    def __init__(self, path: Path) -> None:
        try:
            lib = ctypes.CDLL(str(path))
        except OSError as error:
            raise KernelBuildError(f"cannot load {path}: {error}; delete it to rebuild") from error
        lib.bl_abi.restype = ctypes.c_int
        lib.bl_isa.restype = ctypes.c_char_p
        lib.bl_open.restype = ctypes.c_void_p
        lib.bl_open.argtypes = [ctypes.c_int]
        lib.bl_close.argtypes = [ctypes.c_void_p]
        lib.bl_run.restype = ctypes.c_int
        lib.bl_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        if lib.bl_abi() != ctypes.sizeof(NativeOp):
            raise KernelBuildError(f"{path} does not fit this version of branchline; delete it")
        self.lib = lib
        self.isa: str = lib.bl_isa().decode()


@lru_cache
def load_library(march: str = "native") -> NativeLibrary:
    """The library for this machine, compiled if needed; loaded once per process.

    Raises:
        KernelBuildError: it cannot be compiled or loaded here.
    """
    return NativeLibrary(build_library(march))


class Runner:
    """Threads that run op lists; calls from several Python threads take turns.

    Args:
        library: see `load_library`.
        threads: workers, the calling thread included; all usable cores if not given.
    """

    def __init__(self, library: NativeLibrary, threads: int | None = None) -> None:
        self.threads = threads or usable_cores()
        self._lib = library.lib
        self._handle = self._lib.bl_open(self.threads)
        if not self._handle:
            raise KernelBuildError(f"cannot start {self.threads} kernel threads")
        self._finalizer = weakref.finalize(self, self._lib.bl_close, self._handle)

    def run(self, ops: "ctypes.Array[NativeOp]", dims: Sequence[int]) -> None:
        """Run `ops` in order with live sizes (tokens, rows, logit rows)."""
        sizes = (ctypes.c_int64 * 3)(*dims)
        if self._lib.bl_run(self._handle, ops, len(ops), sizes):
            raise MemoryError("the CPU kernels could not allocate their scratch memory")

    def close(self) -> None:
        """Stop the threads; the runner must not be used afterwards."""
        self._finalizer()
