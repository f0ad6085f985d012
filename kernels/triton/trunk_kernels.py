"""Decode of rows that share a trunk: the keys they share are read once for a tile of rows.

Invariant: a tile's trunk is the longest run of first slots that all its rows with tokens have in
common, found on the device, so that a recorded step finds it anew. `trunk_kernel` writes the parts
that `decode_kernel`, which comes next, joins with what each row has behind the trunk.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.attention_kernels import attend_keys, load_queries, parts_of
from branchline.kernels.triton.device_functions import INT32_MAX, take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: first_difference_kernel: operands of a launch
# size: trunk_kernel: operands of a launch


@triton.jit
def first_difference_kernel(
    rows,
    slot_table,
    seq_lens,
    extend_lens,
    found,
    batch,
    context,
    least,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """found [tiles, blocks]: the first place of a block that is not the same slot in all rows.

    Rows of at most `least` tokens take no part (padding is such). The last token of the shortest
    row counts as different: it is being written.
    """
    tile, block = tl.program_id(0), tl.program_id(1)
    r = tl.arange(0, ROWS)
    row = tile * ROWS + r
    length = tl.load(seq_lens + row, mask=row < batch, other=0)
    live = (tl.load(extend_lens + row, mask=row < batch, other=0) > 0) & (length > least)
    length = tl.where(live, length, INT32_MAX)
    alone = tl.sum(live.to(tl.int32), axis=0) < 2
    end = tl.where(alone, 0, tl.min(length, axis=0) - 1)
    start = block * BLOCK
    first = tl.where(start + BLOCK > end, tl.maximum(end, start), INT32_MAX)
    if start < end:
        tables = tl.load(rows + row, mask=live, other=0).to(tl.int64) * context
        model = tl.sum(tl.where(r == tl.min(tl.where(live, r, ROWS), axis=0), tables, 0), axis=0)
        i = start + tl.arange(0, BLOCK)
        want = tl.load(slot_table + model + i, mask=i < end, other=-1)
        inside = live[:, None] & (i < end)[None, :]
        slots = tl.load(slot_table + tables[:, None] + i[None, :], mask=inside, other=-1)
        differs = tl.where(inside & (slots != want[None, :]), i[None, :], INT32_MAX)
        first = tl.minimum(first, tl.min(tl.min(differs, axis=1), axis=0))
    tl.store(found + tile * tl.num_programs(1) + block, first)


@triton.jit
def trunk_length_kernel(
    found, trunk_lens, blocks, least, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr
):
    """trunk_lens [tiles]: multiples of BLOCK_N, 0 where that is below `least`."""
    tile = tl.program_id(0)
    b = tl.arange(0, BLOCK)
    first = tl.min(tl.load(found + tile * blocks + b, mask=b < blocks, other=INT32_MAX), axis=0)
    same = first // BLOCK_N * BLOCK_N
    tl.store(trunk_lens + tile, tl.where(same >= least, same, 0))


@triton.jit
def trunk_kernel(
    q,
    k_pool,
    v_pool,
    rows,
    slot_table,
    seq_lens,
    extend_lens,
    extend_start,
    trunk_lens,
    part_out,
    part_lse,
    scale_log2,
    batch,
    context,
    hkv,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    TRUNK_PARTS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """One of TRUNK_PARTS parts of a tile's trunk for ROWS rows and one KV head."""
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    take_turn(PDL)
    trunk = tl.load(trunk_lens + tile)
    part = parts_of(trunk, TRUNK_PARTS, BLOCK_N)[0]
    start = split * part
    end = tl.minimum(start + part, trunk)
    if start < end:
        m, i = tl.arange(0, ROWS * GROUP_PAD), tl.arange(0, BLOCK_D)
        row, g = tile * ROWS + m // GROUP_PAD, m % GROUP_PAD
        live = tl.load(extend_lens + row, mask=row < batch, other=0) > 0
        token = tl.load(extend_start + row, mask=live, other=0).to(tl.int64)
        query, _, q_live = load_queries(
            q, token, head, g, live, scale_log2, k_pool, hkv, GROUP, D, BLOCK_D
        )
        # Any row that has the trunk reads it for all; what it gives for one without is not used.
        has_it = live & (tl.load(seq_lens + row, mask=live, other=0) > trunk)
        reader = tl.min(tl.where(has_it, row, INT32_MAX), axis=0)
        table = slot_table + tl.load(rows + reader).to(tl.int64) * context
        top, total, acc = attend_keys(
            query, k_pool, v_pool, table, start, end, head, hkv, D, BLOCK_N, True, WIDE
        )
        mine = ((row.to(tl.int64) * hkv + head) * PARTS + split) * GROUP + g
        place = mine[:, None] * D + i[None, :]
        tl.store(part_out + place, acc / total[:, None], mask=q_live)
        tl.store(part_lse + mine, top + tl.log2(total), mask=live & (g < GROUP))
