"""Launches what rotates heads and writes keys and values, with adapters or without."""

from __future__ import annotations

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.heads import HeadPlaces
from branchline.kernels.triton.lora import Inner
from branchline.kernels.triton.rope_kernel import rope_write_kernel
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["starts_late", "write_heads"]


def starts_late(tokens: int) -> bool:
    """Whether what comes behind `write_heads` of so many tokens starts when all before it has
    ended: attention of a few rows gains by what it reads early, that of many by an early start."""
    return tokens < 64


def write_heads(
    gpu: Device, qkv: torch.Tensor, into: HeadPlaces, *, made: Inner | None = None
) -> torch.Tensor:
    """`Ops.write_heads`.

    Args:
        made: what is left of the adapters of qkv.
    """
    t, (_, hkv, d) = qkv.shape[0], into.k_pool.shape
    hq = qkv.shape[1] // d - 2 * hkv
    if made is not None and made.weight.parts != (hq * d, hkv * d, hkv * d):
        raise KernelInputError(
            f"adapters of parts {made.weight.parts} do not fit {hq} heads of queries and twice "
            f"{hkv} of keys and values, of {d} each"
        )
    out = qkv.new_empty(t, hq, d)
    late = starts_late(t)
    heads = 2 if late else 8
    rope_write_kernel[(t, triton.cdiv(hq + 2 * hkv, heads))](
        qkv,
        into.cos_sin,
        into.positions,
        into.k_pool,
        into.v_pool,
        into.out_slots,
        into.cos_sin if into.q_norm is None else into.q_norm,
        into.cos_sin if into.k_norm is None else into.k_norm,
        out,
        *((out,) * 4 if made is None else made.tensors()),
        into.eps,
        hq,
        hkv,
        *((0, 0) if made is None else made.strides()),
        D=d,
        HALF=power_of_two(d // 2),
        HEADS=heads,
        NORM_Q=into.q_norm is not None,
        NORM_K=into.k_norm is not None,
        RANK=0 if made is None else made.inner.shape[2],
        LATE=late,
        **gpu.launch(1 if heads == 2 else 4),
    )
    return out
