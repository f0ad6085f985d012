"""Launches of the attention kernels: which one, in how many parts.

Invariant: the choice is made from what the host knows (shapes, and the lengths that
`AttentionMeta` has on the host), never by reading the device.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from branchline.kernels.errors import KernelInputError
from branchline.kernels.ops import AttentionMeta
from branchline.kernels.triton.attention_kernels import decode_kernel, extend_kernel
from branchline.kernels.triton.rope import starts_late
from branchline.kernels.triton.trunk_kernels import (
    first_difference_kernel,
    trunk_kernel,
    trunk_length_kernel,
)
from branchline.kernels.triton.tuning import Device, plain_launch, power_of_two
from branchline.kernels.triton.verify_kernels import verify_kernel

__all__ = ["SHORTEST_TRUNK", "attend", "find_trunks", "trunk_tiles"]

_LOG2_E = 1.4426950408889634
_MAX_SPLITS = 32
_TILE_ROWS = 128
_SMALL_TILE_ROWS = 64
_DECODE_KEYS = 64
_MANY_KEYS = 128
_MANY_BYTES = 256
"""Keys of a block where rows are not cut, and bytes of a key up to which that is so."""
_TRUNK_QUERIES = 64
"""Queries of a tile that reads a trunk: rows times query heads of a KV head."""
_CHECKED_TOKENS = 512
"""Tokens of a step with trees, or of few tokens a row, up to which its rows' keys are cut into
parts."""
_CHECKED_QUERIES = 32
"""Queries of a tile of such a step, where rows have more than a few tokens and tiles are many."""
_SMALL_TILE = 16
_WAYS = 4
_KEY_BYTES = 16 << 10
"""Queries of a tile whose keys several warps share, how many do, and bytes of the keys of a block:
a check of 16 tokens spends a third less on attention than with a block for all warps."""
_AT_ONCE = 4
"""Parts of a tile of a check that are asked for at once when they are joined."""
_COMPARED = 512
"""Slots of each row that one program compares."""
SHORTEST_TRUNK = 256
"""Keys below which a trunk is not worth the joining."""


class _Step(NamedTuple):
    """Operands of `Ops.paged_attention`, and where its result goes: out [t, hq * d]."""

    q: torch.Tensor
    k_pool: torch.Tensor
    v_pool: torch.Tensor
    meta: AttentionMeta
    scale: float
    out: torch.Tensor


def attend(
    gpu: Device,
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    meta: AttentionMeta,
    scale: float,
    deterministic: bool,
    *,
    rotated: bool = False,
) -> torch.Tensor:
    """See `Ops.paged_attention`. With `deterministic`, one kernel serves all rows, uncut.

    Args:
        rotated: q comes of `write_heads`: what else the kernels read is older, but for new keys,
            and may be read before that has ended.
    """
    early = rotated and starts_late(q.shape[0])
    t, hq, d = q.shape
    hkv = k_pool.shape[1]
    if hq % hkv:
        raise KernelInputError(f"{hq} query heads cannot share {hkv} KV heads evenly")
    out = q.new_empty(t, hq * d)
    if t == 0:
        return out
    step = _Step(q, k_pool, v_pool, meta, scale, out)
    if not deterministic and meta.tree_lens is None and _longest_extend(meta) <= 1:
        _decode(gpu, step, early)
    elif not deterministic and _few_tokens(gpu, meta, t, hkv):
        _verify(gpu, step, early)
    else:
        _extend(gpu, step, small=deterministic)
    return out


def _few_tokens(gpu: Device, meta: AttentionMeta, t: int, hkv: int) -> bool:
    """Whether the rows of a step have so few tokens that it is their keys that take long.

    Without trees that is so only where rows and heads do not fill the device by themselves: 32 rows
    of eight heads took a third longer in parts.
    """
    if t > _CHECKED_TOKENS or meta.tree_lens is not None:
        return t <= _CHECKED_TOKENS
    rows = meta.rows.shape[0]
    return t <= 16 * rows and 2 * rows * hkv <= 3 * gpu.processors


def _trunk_rows(group: int) -> int:
    """Rows of a tile that reads a trunk together."""
    return max(1, _TRUNK_QUERIES // power_of_two(group))


def trunk_tiles(rows: int, group: int) -> int:
    """Entries of `AttentionMeta.trunk_lens` for so many rows of the batch."""
    return -(-rows // _trunk_rows(group))


def find_trunks(meta: AttentionMeta, group: int, out: torch.Tensor) -> None:
    """Fill `out` [trunk_tiles] with how many first slots the rows of each tile share."""
    tiles, context = out.shape[0], meta.slot_table.shape[1]
    blocks = triton.cdiv(context, _COMPARED)
    found = torch.empty(tiles, blocks, dtype=torch.int32, device=out.device)
    first_difference_kernel[(tiles, blocks)](
        meta.rows,
        meta.slot_table,
        meta.seq_lens,
        meta.extend_lens,
        found,
        meta.rows.shape[0],
        meta.slot_table.stride(0),
        SHORTEST_TRUNK,
        ROWS=_trunk_rows(group),
        BLOCK=_COMPARED,
        **plain_launch(8),
    )
    trunk_length_kernel[(tiles,)](
        found,
        out,
        blocks,
        SHORTEST_TRUNK,
        BLOCK=power_of_two(blocks),
        BLOCK_N=_DECODE_KEYS,
        **plain_launch(1),
    )


def _longest_extend(meta: AttentionMeta) -> int:
    """Tokens of the row with the most, or 2 where only the device knows."""
    lens = meta.host_extend_lens
    if lens is None:
        lens = meta.extend_lens
        if lens.device.type != "cpu":
            return 2
    return int(lens.max()) if len(lens) else 0


def _parts(gpu: Device, results: int) -> int:
    """Into how many parts to cut each result so that programs fill the device twice."""
    return min(_MAX_SPLITS, max(1, 2 * gpu.processors // results))


def _operands(step: _Step) -> tuple[torch.Tensor, ...]:
    """The first operands of every attention kernel."""
    meta = step.meta
    rows = meta.rows, meta.slot_table, meta.seq_lens, meta.extend_lens, meta.extend_start
    return step.q, step.k_pool, step.v_pool, *rows


def _heads(gpu: Device, step: _Step) -> dict[str, Any]:
    """What every attention kernel is compiled for."""
    _, hq, d = step.q.shape
    return {
        "GROUP": hq // step.k_pool.shape[1],
        "D": d,
        "BLOCK_D": max(16, power_of_two(d)),
        "WIDE": gpu.interpreted,
    }


def _decode(gpu: Device, step: _Step, early: bool) -> None:
    """Rows of one token."""
    q, k_pool, _, meta, scale, out = step
    b, hq, d, hkv = meta.rows.shape[0], *q.shape[1:], k_pool.shape[1]
    group, trunks = hq // hkv, meta.trunk_lens
    # No more parts than the longest row has blocks.
    splits = min(_parts(gpu, b * hkv), triton.cdiv(meta.slot_table.shape[1], _DECODE_KEYS))
    if b * hkv > gpu.counters.shape[0]:
        splits = 1
    # A row that one program reads alone is read faster in large blocks; two of them must fit.
    many = trunks is None and splits == 1 and power_of_two(d) * k_pool.element_size() <= _MANY_BYTES
    trunk_parts = 0 if trunks is None else _parts(gpu, len(trunks) * hkv)
    parts = splits + trunk_parts
    shape = (b, hkv, parts, group, d) if parts > 1 else (1,)
    part_out, part_lse = torch.empty(2, *shape, dtype=torch.float32, device=q.device).unbind(0)
    if trunks is not None:
        trunk_kernel[(len(trunks), hkv, trunk_parts)](
            *_operands(step),
            trunks,
            part_out,
            part_lse,
            scale * _LOG2_E,
            b,
            meta.slot_table.stride(0),
            hkv,
            GROUP_PAD=power_of_two(group),
            BLOCK_N=_DECODE_KEYS,
            ROWS=_trunk_rows(group),
            TRUNK_PARTS=trunk_parts,
            PARTS=parts,
            **_heads(gpu, step),
            **gpu.launch(4, 2),
        )
    decode_kernel[(b, hkv, splits)](
        *_operands(step),
        meta.extend_lens if trunks is None else trunks,
        part_out,
        part_lse,
        gpu.counters,
        out,
        scale * _LOG2_E,
        meta.slot_table.stride(0),
        hkv,
        GROUP_PAD=max(16, power_of_two(group)),
        BLOCK_N=_MANY_KEYS if many else _DECODE_KEYS,
        TRUNK_BLOCK=_DECODE_KEYS,
        TRUNK_ROWS=_trunk_rows(group),
        TRUNK_PARTS=trunk_parts,
        SPLITS=splits,
        JOIN_G=power_of_two(group),
        JOIN_S=min(power_of_two(parts), max(1, 16 // power_of_two(group))),
        AT_ONCE=min(power_of_two(parts), 2 * _AT_ONCE),
        EARLY=early,
        **_heads(gpu, step),
        **(gpu.launch(4, 2) if many else gpu.launch(2, 2 if b < 128 else 3)),
    )


def _extend(gpu: Device, step: _Step, *, small: bool) -> None:
    """Rows of any number of tokens, uncut; `small` fixes the size of tiles."""
    q, k_pool, _, meta, scale, out = step
    b, t, hkv = meta.rows.shape[0], q.shape[0], k_pool.shape[1]
    group_pad = power_of_two(q.shape[1] // hkv)
    few = small or t <= 16 * b or q.dtype == torch.float32
    tokens = max(1, (_SMALL_TILE_ROWS if few else _TILE_ROWS) // group_pad)
    no_tree = meta.tree_lens is None or meta.tree_offsets is None or meta.tree_words is None
    none = meta.extend_lens
    extend_kernel[(t // tokens + b, hkv)](
        *_operands(step),
        none if no_tree else meta.tree_lens,
        none if no_tree else meta.tree_offsets,
        none if no_tree else meta.tree_words,
        out,
        scale * _LOG2_E,
        b,
        meta.slot_table.stride(0),
        hkv,
        GROUP_PAD=group_pad,
        TOKENS=tokens,
        # deterministic: of the same size whether or not some row of the step has candidates
        BLOCK_N=64 if (no_tree or small) and q.dtype != torch.float32 else 32,
        BLOCK_B=power_of_two(b),
        TREE=not no_tree,
        **_heads(gpu, step),
        **gpu.launch(4 if few else 8, 2),
    )


def _verify(gpu: Device, step: _Step, early: bool) -> None:
    """A step of few tokens, with trees or without."""
    q, k_pool, _, meta, scale, out = step
    b, t, d, hkv = meta.rows.shape[0], q.shape[0], q.shape[2], k_pool.shape[1]
    group = q.shape[1] // hkv
    # Small tiles while all of them run at once: a program's time is that of its own few steps.
    m = max(_SMALL_TILE, power_of_two(group))
    if t * group > 16 * b and (t // (m // group) + b) * hkv > gpu.processors:
        m = max(_CHECKED_QUERIES, m)
    tokens = m // group
    tiles = t // tokens + b
    ways = _WAYS if m <= _SMALL_TILE else 0
    if ways:
        block = max(16 * ways, min(_MANY_KEYS, _KEY_BYTES // power_of_two(d) // q.element_size()))
    else:
        block = _DECODE_KEYS if q.dtype != torch.float32 else 32
    splits = min(_parts(gpu, tiles * hkv), triton.cdiv(meta.slot_table.shape[1], block))
    if tiles * hkv > gpu.counters.shape[0]:
        splits = 1
    shape = (2, tiles, hkv, splits, m, d)
    trees: tuple[torch.Tensor | None, ...] = meta.tree_lens, meta.tree_offsets, meta.tree_words
    if meta.tree_lens is None:  # no row has candidates
        none = gpu.flags[0]
        trees = none.view(torch.int32), none.view(torch.int32), none.view(torch.int64)
    verify_kernel[(tiles, hkv, splits)](
        *_operands(step),
        *trees,
        *torch.empty(shape, dtype=torch.float32, device=q.device).unbind(0),
        gpu.counters,
        out,
        scale * _LOG2_E,
        b,
        meta.slot_table.stride(0),
        hkv,
        TOKENS=tokens,
        M=m,
        BLOCK_N=block,
        BLOCK_B=max(32, power_of_two(b)),
        AT_ONCE=_AT_ONCE,
        EARLY=early,
        WAYS=ways,
        **_heads(gpu, step),
        **gpu.launch(4, 2),
    )
