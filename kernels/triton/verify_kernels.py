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
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from branchline.kernels.triton.attention_kernels import (
    attend_block,
    attend_keys,
    join_tile,
    load_queries,
    log_weight,
    parts_of,
    tree_visible,
)
from branchline.kernels.triton.device_functions import dot, take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: tile_part: operands of a launch
# size: ways_part: operands of a launch
# size: ways_seen: operands of a launch
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
def _keys_of_ways(WAYS: tl.constexpr, BLOCK_N: tl.constexpr):
    """[WAYS, BLOCK_N] places of a block's keys."""
    return (tl.arange(0, WAYS) * BLOCK_N)[:, None] + tl.arange(0, BLOCK_N)[None, :]


@triton.jit
def ways_seen(seen, words, x, key, extend, length, nodes):
    """`tree_visible` of keys [WAYS, N]: `seen` [WAYS, M, N], but for pairs in the tree its mask."""
    node, other = x - (extend - nodes), key - (length - nodes)
    per_node = tl.cdiv(nodes, 64)
    bits = tl.zeros(seen.shape, tl.int64)
    for w in range(0, per_node):
        inside = (node >= 0) & (x < extend)
        word = tl.load(words + node * per_node + w, mask=inside, other=0)
        mine = other // 64 == w
        bit = (word[None, :, None] >> tl.where(mine, other % 64, 0).to(tl.int64)[:, None, :]) & 1
        bits = tl.where(mine[:, None, :], bit, bits)
    both = (node >= 0)[None, :, None] & (other >= 0)[:, None, :]
    return tl.where(both, bits != 0, seen)


@triton.jit
def ways_part(
    query, k_pool, v_pool, table, slots, words, x, start, end, extend, length, nodes, head, hkv,
    D: tl.constexpr, WAYS: tl.constexpr, BLOCK_N: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The running softmax of a tile over the keys from `start` to `end`, as `attend_keys` gives it.

    A way is BLOCK_N keys, which one warp takes, so that no warp waits for another before all of
    them are joined. slots [WAYS, BLOCK_N] of the first keys.
    """
    M: tl.constexpr = query.shape[0]
    BLOCK_D: tl.constexpr = query.shape[1]
    i = tl.arange(0, BLOCK_D)
    n = _keys_of_ways(WAYS, BLOCK_N)
    queries = tl.broadcast_to(query[None, :, :], [WAYS, M, BLOCK_D])
    top = tl.full([WAYS, M], float("-inf"), tl.float32)
    total = tl.zeros([WAYS, M], tl.float32)
    acc = tl.zeros([WAYS, M, BLOCK_D], tl.float32)
    for first in range(start, end, WAYS * BLOCK_N):
        key = first + n
        live = key < end
        place = slots.to(tl.int64) * (hkv * D) + head * D
        following = key + WAYS * BLOCK_N
        slots = tl.load(table + following, mask=following < end, other=0)
        keys = tl.load(
            k_pool + place[:, None, :] + i[None, :, None],
            mask=live[:, None, :] & (i < D)[None, :, None],
            other=0.0,
        )
        values = tl.load(
            v_pool + place[:, :, None] + i[None, None, :],
            mask=live[:, :, None] & (i < D)[None, None, :],
            other=0.0,
        )
        seen = (key[:, None, :] <= (length - extend + x)[None, :, None]) & live[:, None, :]
        if first + WAYS * BLOCK_N > length - nodes:
            seen = ways_seen(seen, words, x, key, extend, length, nodes) & live[:, None, :]
        scores = dot(queries, keys, None, WIDE)
        scores = tl.where(seen, scores, float("-inf"))
        new = tl.maximum(top, tl.max(scores, axis=2))
        base = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - base[:, :, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights, axis=2)
        acc = dot(weights.to(values.dtype), values, acc * shrink[:, :, None], WIDE)
        top = new
    best = tl.max(top, axis=0)
    share = tl.exp2(top - tl.where(best == float("-inf"), 0.0, best)[None, :])
    return best, tl.sum(total * share, axis=0), tl.sum(acc * share[:, :, None], axis=0)


@triton.jit
def verify_kernel(
    q, k_pool, v_pool, rows, slot_table, seq_lens, extend_lens, extend_start,
    tree_lens, tree_offsets, tree_words, part_out, part_lse, arrived, out,
    scale_log2, batch, context, hkv,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, TOKENS: tl.constexpr,
    M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, AT_ONCE: tl.constexpr,
    EARLY: tl.constexpr, WAYS: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program takes TOKENS tokens of one row, one KV head and one part of the keys.

    Its queries are a tile [M, D], M at least TOKENS * GROUP. Tiles past the last one do nothing, so
    the grid needs an upper bound of the tiles only. Float32 scratch: part_out and part_lse
    [tiles, hkv, parts, M, D]; `arrived` [tiles * hkv] counts the parts and is 0 again in the end.
    With WAYS, so many warps share a block of keys. EARLY: q comes of `write_heads`.
    """
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    splits = tl.num_programs(2)
    if not EARLY:
        take_turn(PDL)
    elif PDL:
        gdc_launch_dependents()
    b = tl.arange(0, BLOCK_B)
    tiles = tl.cdiv(tl.load(extend_lens + b, mask=b < batch, other=0), TOKENS)
    ends = tl.cumsum(tiles, axis=0)
    there = tile < tl.max(ends, axis=0)
    row = tl.minimum(tl.sum((ends <= tile).to(tl.int32), axis=0), batch - 1)
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
    part, used = parts_of(keys, splits, BLOCK_N)
    start = split * part
    end = tl.minimum(start + part, keys)
    table = slot_table + tl.load(rows + row).to(tl.int64) * context
    first_token = tl.load(extend_start + row).to(tl.int64)
    words = tree_words + tl.load(tree_offsets + row)
    there = there & (split < used)
    if WAYS:
        n = start + _keys_of_ways(WAYS, BLOCK_N // WAYS)
        slots = tl.load(table + n, mask=(n < end) & (n * 0 + split < used), other=0)
    if PDL and EARLY:
        gdc_wait()
    if there:
        m, i = tl.arange(0, M), tl.arange(0, BLOCK_D)
        x, g = first_x + m // GROUP, m % GROUP
        live = (m < TOKENS * GROUP) & (x < extend)
        query, q_place, q_live = load_queries(
            q, first_token + x, head, g, live, scale_log2, k_pool, hkv, GROUP, D, BLOCK_D
        )
        if WAYS:
            top, total, acc = ways_part(
                query, k_pool, v_pool, table, slots, words, x, start, end,
                extend, length, nodes, head, hkv, D, WAYS, BLOCK_N // WAYS, WIDE,
            )  # fmt: skip
        else:
            top, total, acc = tile_part(
                query, k_pool, v_pool, table, words, x, start, end,
                plain_until, extend, length, nodes, head, hkv, D, BLOCK_N, WIDE,
            )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        if used == 1:
            tl.store(out + q_place, value.to(out.dtype.element_ty), mask=q_live)
        else:
            one = (tile * hkv + head).to(tl.int64)
            mine = ((one * splits + split) * M + m)[:, None] * D + i[None, :]
            lse = tl.broadcast_to(log_weight(top, total)[:, None], [M, BLOCK_D])
            tl.store(part_out + mine, value, mask=(i < D)[None, :])
            tl.store(part_lse + mine, lse, mask=(i < D)[None, :])
            tl.debug_barrier()  # the whole program has written before it says so
            if tl.atomic_add(arrived + one, 1) == used - 1:
                tl.store(arrived + one, 0)
                value = join_tile(part_out, part_lse, one * splits, used, M, M, D, BLOCK_D, AT_ONCE)
                tl.store(out + q_place, value.to(out.dtype.element_ty), mask=q_live)
