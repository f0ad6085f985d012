"""Chooses the backend of the ops, once and explicitly.

Invariant: the choice is made when an `Ops` object is built and is visible in its type; nothing is
chosen at import and nothing is ambient.
"""

import warnings
from typing import Literal

import torch

from branchline.kernels.cpu.binding import Runner, load_library
from branchline.kernels.cpu.native_ops import NativeOps
from branchline.kernels.errors import KernelBuildError, KernelInputError
from branchline.kernels.ops import Ops
from branchline.kernels.reference import ReferenceOps

__all__ = ["Backend", "make_ops", "make_runner"]

Backend = Literal["auto", "native", "reference"]


def make_runner(threads: int | None = None) -> Runner:
    """Threads of the native CPU backend, for `NativeOps` and `CpuGraph`.

    Args:
        threads: workers, the calling thread included; all usable cores if not given.

    Raises:
        KernelBuildError: the library cannot be compiled or loaded here.
    """
    return Runner(load_library(), threads)


def make_ops(
    backend: Backend = "auto",
    *,
    threads: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    deterministic: bool = False,
) -> Ops:
    """The ops that a model runs eagerly.

    Args:
        backend: "native" needs the compiled CPU library, "reference" is plain torch, "auto" takes
            the native one where it can be built and warns where it cannot.
        threads: of the native backend, the caller's own included; all usable cores if not given.
        dtype: of the activations; the native backend's are float32 always.
        device: where they run; on a CUDA device "auto" takes the Triton kernels.
        deterministic: fix the order of all sums where a backend does not do so anyway.

    Raises:
        KernelBuildError: "native" where the library cannot be built.
        KernelInputError: an unknown backend.
    """
    if backend == "reference":
        return ReferenceOps(dtype)
    if device is not None and device.type != "cpu":
        # Triton comes with torch's CUDA builds, and a machine without a GPU need not have it.
        from branchline.kernels.triton import TritonOps

        return TritonOps(device, dtype, deterministic=deterministic)
    if backend not in ("auto", "native"):
        raise KernelInputError(f"unknown backend {backend!r}: use auto, native or reference")
    try:
        return NativeOps(make_runner(threads))
    except KernelBuildError as error:
        if backend == "native":
            raise
        warnings.warn(f"running on slow reference kernels: {error}", RuntimeWarning, stacklevel=2)
        return ReferenceOps(dtype)
