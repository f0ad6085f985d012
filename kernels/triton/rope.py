"""Launches what rotates heads and writes keys and values, with adapters or without."""

from __future__ import annotations

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.triton.lora import Inner
from branchline.kernels.triton.rope_kernel import rope_write_kernel
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["turns_late", "write_heads"]


def turns_late(tokens: int) -> bool:
    """Whether what comes behind `write_heads` of so many tokens starts when all before it has
    ended: attention of a few rows gains by what it reads early, that of many by an early start."""
    return tokens < 64


def write_heads(
    gpu: Device,
    qkv: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    pools: tuple[torch.Tensor, torch.Tensor],
    out_slots: torch.Tensor,
    norms: tuple[torch.Tensor | None, torch.Tensor | None],
    eps: float,
    *,
    made: Inner | None = None,
) -> torch.Tensor:
    """`Ops.qk_norm_rope_write`.

    Args:
        pools: of keys and of values.
        norms: of queries and of keys.
        made: what is left of the adapters of qkv.
    """
    (k_pool, v_pool), (q_norm, k_norm) = pools, norms
    t, (_, hkv, d) = qkv.shape[0], k_pool.shape
    hq = qkv.shape[1] // d - 2 * hkv
    if made is not None and made.weight.parts != (hq * d, hkv * d, hkv * d):
        raise KernelInputError(
            f"adapters of parts {made.weight.parts} do not fit {hq} heads of queries and twice "
            f"{hkv} of keys and values, of {d} each"
        )
    out = qkv.new_empty(t, hq, d)
    late = turns_late(t)
    heads = 2 if late else 8
    rope_write_kernel[(t, triton.cdiv(hq + 2 * hkv, heads))](
        qkv,
        cos_sin,
        positions,
        k_pool,
        v_pool,
        out_slots,
        cos_sin if q_norm is None else q_norm,
        cos_sin if k_norm is None else k_norm,
        out,
        *((out,) * 4 if made is None else made.tensors()),
        eps,
        hq,
        hkv,
        *((0, 0) if made is None else made.strides()),
        D=d,
        HALF=power_of_two(d // 2),
        HEADS=heads,
        NORM_Q=q_norm is not None,
        NORM_K=k_norm is not None,
        RANK=0 if made is None else made.inner.shape[2],
        LATE=late,
        **gpu.launch(1 if heads == 2 else 4),
    )
    return out
