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
    if name != "auto" and name not in BACKENDS:
        raise InvalidRequest(
            "There is no such attention backend.",
            value=name,
            hint=f"Use auto, {', '.join(BACKENDS)}.",
        )
    reasons = []
    for candidate in BACKENDS if name == "auto" else (name,):
        backend = BACKENDS[candidate](needs)
        support = backend.supports(needs)
        if support.ok:
            return backend
        reasons.append(f"{candidate}: {support.reason}")
    raise InvalidRequest(
        f"No attention backend that was asked for can run this model ({'; '.join(reasons)}).",
        value=name,
        hint="Another device or kv_dtype may do." if name == "auto" else 'Use "auto".',
    )
