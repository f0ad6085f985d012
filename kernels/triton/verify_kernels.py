"""Attention of a few tokens of each row that see each other by a tree: steps that check guesses.

`extend_kernel` goes through a row's keys one block after the other, which takes as long for a tree
of 20 tokens as for a prompt. Here the keys of a row are cut into parts that run side by side, as
`decode_kernel` does it, with all query heads and some tokens of the row as one tile of queries.

Invariant: as of the other attention kernels; the parts of a tile are joined in their order by the
program that arrives last, so the result does not depend on which one that is.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.attention_kernels import (
    attend_block,
    attend_keys,
    join_some,
    load_queries,
    tree_visible,
)
from branchline.kernels.triton.device_functions import take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: join_tile: operands of a launch
# size: tile_part: operands of a launch
# size: verify_kernel: operands of a launch


@triton.jit
def tile_part(
    query, k_pool, v_pool, table, words, x, start, end, plain_until, extend, length, nodes, head,
    hkv,
    D: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The running softmax of a tile over the keys from `start` to `end`, as `attend_keys` gives it.

    Keys before `plain_until`, a multiple of BLOCK_N, are seen by the whole tile; start is one, too.
    """
    BLOCK_D: tl.constexpr = query.shape[1]
    n = tl.arange(0, BLOCK_N)
    middle = tl.maximum(start, tl.minimum(end, plain_until))
    top, total, acc = attend_keys(
        query, k_pool, v_pool, table, start, middle, head, hkv, D, BLOCK_N, False, WIDE
    )
    for first in range(middle, end, BLOCK_N):
        key = first + n
        slots = tl.load(table + key, mask=key < end, other=0)
        visible = (key[None, :] <= (length - extend) + x[:, None]) & (key < end)[None, :]
        visible = tree_visible(visible, words, x, key, extend, length, nodes)
        top, total, acc = attend_block(
            query, top, total, acc, k_pool, v_pool, slots, key < end, visible,
            head * D, hkv * D, D, BLOCK_D, WIDE,
        )  # fmt: skip
    return top, total, acc


@triton.jit
def join_tile(
    part_out, part_lse, first_part, used,
    M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, JOIN: tl.constexpr,
):  # fmt: skip
    """The first `used` parts of a tile from place `first_part` on, joined in order, JOIN at a time:
    [M, BLOCK_D]."""
    m, i, s = tl.arange(0, M), tl.arange(0, BLOCK_D), tl.arange(0, JOIN)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for first in range(0, used, JOIN):
        live = (first + s < used)[:, None] & (m >= 0)[None, :]
        place = (first_part + first + s)[:, None] * M + m[None, :]
        # .cg: what other multiprocessors wrote is in L2, not in this one's L1.
        lse = tl.load(part_lse + place, mask=live, other=float("-inf"), cache_modifier=".cg")
        value = tl.load(
            part_out + place[:, :, None] * D + i[None, None, :],
            mask=live[:, :, None] & (i < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        top, total, acc = join_some(top, total, acc, lse, value)
    return acc / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def verify_kernel(
    q, k_pool, v_pool, rows, slot_table, seq_lens, extend_lens, extend_start,
    tree_lens, tree_offsets, tree_words, part_out, part_lse, arrived, out,
    scale_log2, batch, context, hkv,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
    M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, JOIN: tl.constexpr,
    WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program takes TOKENS tokens of one row, one KV head and one part of the keys.

    Its queries are a tile [M, D], M at least TOKENS * GROUP. Tiles past the last one do nothing, so
    the grid needs an upper bound of the tiles only. Float32 scratch: part_out
    [tiles, hkv, parts, M, D] and part_lse [tiles, hkv, parts, M]; `arrived` [tiles * hkv] counts
    the parts and is 0 again in the end.
    """
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    take_turn(PDL)
    b = tl.arange(0, BLOCK_B)
    tiles = tl.cdiv(tl.load(extend_lens + b, mask=b < batch, other=0), TOKENS)
    ends = tl.cumsum(tiles, axis=0)
    if tile < tl.max(ends, axis=0):
        row = tl.sum((ends <= tile).to(tl.int32), axis=0)
        tile_in_row = tile - tl.max(tl.where(ends <= tile, ends, 0), axis=0)
        extend, length = tl.load(extend_lens + row), tl.load(seq_lens + row)
        nodes = tl.load(tree_lens + row)
        first_x = tile_in_row * TOKENS
        last_x = tl.minimum(first_x + TOKENS, extend) - 1
        in_tree = last_x >= extend - nodes
        keys = tl.where(in_tree, length, length - extend + last_x + 1)
        plain_until = length - extend + first_x + 1
        plain_until = tl.where(in_tree, tl.minimum(plain_until, length - nodes), plain_until)
        plain_until = plain_until // BLOCK_N * BLOCK_N
        part = tl.cdiv(tl.cdiv(keys, splits), BLOCK_N) * BLOCK_N
        used = tl.cdiv(keys, part)
        if split < used:
            m, i = tl.arange(0, M), tl.arange(0, BLOCK_D)
            x, g = first_x + m // GROUP, m % GROUP
            live = (m < TOKENS * GROUP) & (x < extend)
            token = tl.load(extend_start + row).to(tl.int64) + x
            query, q_place, q_live = load_queries(
                q, token, head, g, live, scale_log2, k_pool, hkv, GROUP, D, BLOCK_D
            )
            table = slot_table + tl.load(rows + row).to(tl.int64) * context
            words = tree_words + tl.load(tree_offsets + row)
            start = split * part
            top, total, acc = tile_part(
                query, k_pool, v_pool, table, words, x, start, tl.minimum(start + part, keys),
                plain_until, extend, length, nodes, head, hkv, D, BLOCK_N, WIDE,
            )  # fmt: skip
            value = acc / tl.where(total > 0, total, 1.0)[:, None]
            if used == 1:
                tl.store(out + q_place, value.to(out.dtype.element_ty), mask=q_live)
            else:
                one = (tile * hkv + head).to(tl.int64)
                mine = (one * splits + split) * M + m
                safe = tl.where(total > 0, total, 1.0)
                lse = tl.where(total > 0, top + tl.log2(safe), float("-inf"))
                tl.store(part_out + mine[:, None] * D + i[None, :], value, mask=(i < D)[None, :])
                tl.store(part_lse + mine, lse)
                tl.debug_barrier()  # the whole program has written before it says so
                if tl.atomic_add(arrived + one, 1) == used - 1:
                    tl.store(arrived + one, 0)
                    value = join_tile(part_out, part_lse, one * splits, used, M, D, BLOCK_D, JOIN)
                    tl.store(out + q_place, value.to(out.dtype.element_ty), mask=q_live)
