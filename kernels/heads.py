"""Where the heads of a layer go once they are computed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["HeadPlaces"]


@dataclass(frozen=True)
class HeadPlaces:
    """Of a step's t tokens: how their heads are rotated, and where keys and values are written.

    Attributes:
        cos_sin: [ctx, d] float32, cos of the d/2 angles then their sin, by position.
        positions: [t] int64 in [0, ctx).
        k_pool: [num_slots, hkv, d] float32 or bfloat16; slots `out_slots` are overwritten.
        v_pool: like k_pool.
        out_slots: [t] int32.
        q_norm: [d] weight of the norm over each query head, or None for no norm.
        k_norm: [d] likewise for keys.
        eps: of the norms.
        several: some row of the step may have more than one token.
    """

    cos_sin: torch.Tensor
    positions: torch.Tensor
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    out_slots: torch.Tensor
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    eps: float = 1e-6
    several: bool = False
