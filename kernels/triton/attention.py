"""Launches of the attention kernels: which one, in how many parts.

Invariant: the choice is made from what the host knows (shapes, and the lengths that
`AttentionMeta` has on the host), never by reading the device.
"""

from __future__ import annotations

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.ops import AttentionMeta
from branchline.kernels.triton.attention_kernels import decode_kernel, extend_kernel
from branchline.kernels.triton.tuning import Device, power_of_two

__all__ = ["attend"]

_LOG2_E = 1.4426950408889634
_MAX_SPLITS = 32
_TILE_ROWS = 128
_SMALL_TILE_ROWS = 64
_DECODE_KEYS = 64


def attend(
    gpu: Device,
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    meta: AttentionMeta,
    scale: float,
    deterministic: bool,
) -> torch.Tensor:
    """See `Ops.paged_attention`. With `deterministic`, one kernel serves all rows, uncut."""
    t, hq, d = q.shape
    hkv = k_pool.shape[1]
    if hq % hkv:
        raise KernelInputError(f"{hq} query heads cannot share {hkv} KV heads evenly")
    out = q.new_empty(t, hq * d)
    if t == 0:
        return out
    if not deterministic and meta.tree_lens is None and _longest_extend(meta) <= 1:
        _decode(gpu, q, k_pool, v_pool, meta, scale, out)
    else:
        _extend(gpu, q, k_pool, v_pool, meta, scale, out, small=deterministic)
    return out


def _longest_extend(meta: AttentionMeta) -> int:
    """Tokens of the row with the most, or 2 where only the device knows."""
    lens = meta.host_extend_lens
    if lens is None:
        lens = meta.extend_lens
        if lens.device.type != "cpu":
            return 2
    return int(lens.max()) if len(lens) else 0


def _decode(
    gpu: Device,
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    meta: AttentionMeta,
    scale: float,
    out: torch.Tensor,
) -> None:
    b, hq, d, hkv = meta.rows.shape[0], *q.shape[1:], k_pool.shape[1]
    group = hq // hkv
    # Enough programs to fill the device twice, no more parts than the longest row has blocks.
    splits = min(_MAX_SPLITS, max(1, 2 * gpu.processors // (b * hkv)))
    splits = min(splits, triton.cdiv(meta.slot_table.shape[1], _DECODE_KEYS))
    if b * hkv > gpu.counters.shape[0]:
        splits = 1
    shape = (b, hkv, splits, group)
    part_out = torch.empty(
        (*shape, d) if splits > 1 else (1,), dtype=torch.float32, device=q.device
    )
    part_lse = torch.empty(shape if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    decode_kernel[(b, hkv, splits)](
        q,
        k_pool,
        v_pool,
        meta.rows,
        meta.slot_table,
        meta.seq_lens,
        meta.extend_lens,
        meta.extend_start,
        part_out,
        part_lse,
        gpu.counters,
        out,
        scale * _LOG2_E,
        meta.slot_table.stride(0),
        hkv,
        GROUP=group,
        GROUP_PAD=max(16, power_of_two(group)),
        D=d,
        BLOCK_D=max(16, power_of_two(d)),
        BLOCK_N=_DECODE_KEYS,
        SPLITS=splits,
        JOIN_G=power_of_two(group),
        JOIN_S=min(power_of_two(splits), max(1, 32 // power_of_two(group))),
        WIDE=gpu.interpreted,
        **gpu.launch(2, 2 if b < 128 else 3),
    )


def _extend(
    gpu: Device,
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    meta: AttentionMeta,
    scale: float,
    out: torch.Tensor,
    *,
    small: bool,
) -> None:
    b, t, hq, d, hkv = meta.rows.shape[0], *q.shape, k_pool.shape[1]
    group = hq // hkv
    group_pad = power_of_two(group)
    few = small or t <= 16 * b or q.dtype == torch.float32
    tokens = max(1, (_SMALL_TILE_ROWS if few else _TILE_ROWS) // group_pad)
    no_tree = meta.tree_lens is None or meta.tree_offsets is None or meta.tree_words is None
    none = meta.extend_lens
    extend_kernel[(t // tokens + b, hkv)](
        q,
        k_pool,
        v_pool,
        meta.rows,
        meta.slot_table,
        meta.seq_lens,
        meta.extend_lens,
        meta.extend_start,
        none if no_tree else meta.tree_lens,
        none if no_tree else meta.tree_offsets,
        none if no_tree else meta.tree_words,
        out,
        scale * _LOG2_E,
        b,
        meta.slot_table.stride(0),
        hkv,
        GROUP=group,
        GROUP_PAD=group_pad,
        D=d,
        BLOCK_D=max(16, power_of_two(d)),
        TOKENS=tokens,
        BLOCK_N=64 if no_tree and q.dtype != torch.float32 else 32,
        BLOCK_B=power_of_two(b),
        TREE=not no_tree,
        WIDE=gpu.interpreted,
        **gpu.launch(4 if few else 8, 2),
    )
