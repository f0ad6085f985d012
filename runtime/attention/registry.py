"""Attention backends by name. Invariant: what a name gives is stated here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

from branchline.runtime.attention.base import AttentionBackend, AttentionNeeds
from branchline.runtime.attention.cpu import CpuAttention
from branchline.runtime.attention.flashinfer import FlashInferAttention
from branchline.runtime.attention.torch_native import TorchAttention
from branchline.runtime.attention.triton import TritonAttention
from branchline.runtime.errors import InvalidRequest

BACKENDS: dict[str, Callable[[AttentionNeeds], AttentionBackend]] = {
    "cpu": lambda needs: CpuAttention(),
    # Before triton: it takes what is faster there, and leaves the rest to the same kernels.
    "flashinfer": FlashInferAttention,
    "triton": TritonAttention,
    "torch_native": lambda needs: TorchAttention(),
}
"""In order of preference for "auto"."""


def make_attention(name: str, needs: AttentionNeeds) -> AttentionBackend:
    """The backend of that name, or for "auto" the first that supports `needs`.

    Raises:
        InvalidRequest: unknown name, or the backend cannot do it; says why.
    """
    if name == "auto":
        for make in BACKENDS.values():
            backend = make(needs)
            if backend.supports(needs).ok:
                return backend
    if name not in BACKENDS:
        raise InvalidRequest(
            "There is no such attention backend.",
            value=name,
            hint=f"Use auto, {', '.join(BACKENDS)}.",
        )
    backend = BACKENDS[name](needs)
    support = backend.supports(needs)
    if not support.ok:
        raise InvalidRequest(
            f"The attention backend {name} cannot run this model: {support.reason}.",
            hint='Use "auto".',
        )
    return backend
