"""Kernels of adapters: tokens grouped by slot, products with A and with B of each token's own.

After Punica (Chen et al., 2023) and S-LoRA (Sheng et al., 2023): a program takes a tile of tokens
of one slot, so that tokens that share an adapter read it together, and the matrix units do the
work however few they are.

Invariant: a tile's slot and tokens are found on the device, within a grid that holds the worst
case; programs beyond the tiles there are do nothing. A token's sums have an order that the shapes
of the matrices alone decide. What lies beyond a rank is not read, and tokens of slot -1 are in no
tile.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from branchline.kernels.triton.device_functions import dot, take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: add_adapters: operands of a launch
# size: add_part: operands of a launch
# size: lora_expand_kernel: operands of a launch
# size: lora_lookup_kernel: operands of a launch
# size: lora_shrink_kernel: operands of a launch


@triton.jit
def lora_order_kernel(slots, order, starts, tokens, count, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Sort tokens by slot, stably, those of slot -1 last: program s places those of slot s.

    starts [count + 1] int32: how many tokens have a slot below; the last program is that of -1.
    """
    mine = tl.program_id(0)
    i = tl.arange(0, BLOCK)
    take_turn(PDL)
    below = tl.zeros([BLOCK], dtype=tl.int32)
    for first in range(0, tokens, BLOCK):
        slot = tl.load(slots + first + i, mask=first + i < tokens, other=count + 1)
        slot = tl.where(slot < 0, count, slot)
        below += (slot < mine).to(tl.int32)
    place = tl.sum(below, axis=0)
    tl.store(starts + mine, place)
    for first in range(0, tokens, BLOCK):
        slot = tl.load(slots + first + i, mask=first + i < tokens, other=count + 1)
        slot = tl.where(slot < 0, count, slot)
        here = (slot == mine).to(tl.int32)
        tl.store(order + place + tl.cumsum(here, axis=0) - 1, first + i, mask=here != 0)
        place += tl.sum(here, axis=0)


@triton.jit
def tile_of(starts, count, tile, TILE: tl.constexpr, BLOCK_S: tl.constexpr):
    """(slot, first, end) of a tile: it is order[first:end]. With slot >= count there is none."""
    s = tl.arange(0, BLOCK_S)
    first = tl.load(starts + s, mask=s < count, other=0)
    last = tl.load(starts + s + 1, mask=s < count, other=0)
    tiles = (last - first + TILE - 1) // TILE
    behind = tl.cumsum(tiles, axis=0)
    slot = tl.sum((behind <= tile).to(tl.int32), axis=0)
    own = s == slot
    nth = tile - tl.sum(tl.where(own, behind - tiles, 0), axis=0)
    start = tl.sum(tl.where(own, first, 0), axis=0) + nth * TILE
    end = tl.minimum(start + TILE, tl.sum(tl.where(own, last, 0), axis=0))
    return slot, start, end


@triton.jit
def part_bounds(part, PARTS: tl.constexpr, n_rows, end0, end1):
    """(first, end) of the outputs of a part of at most three."""
    first = tl.where(part == 0, 0, tl.where(part == 1, end0, end1))
    end = tl.where(part == PARTS - 1, n_rows, tl.where(part == 0, end0, end1))
    return first, end


@triton.jit
def ask_for_b(b, rank, first, last, n_rows):
    """Ask for outputs first:last of some ranks of a slot's B to come into the L2 cache."""
    r = tl.arange(0, 16)
    n = tl.arange(0, 64) * 64  # elements in a cache line of 128 bytes
    for low in range(0, rank, 16):
        line = tl.minimum(low + r, rank - 1)[:, None] * n_rows
        for start in range(first, last, 4096):
            place = b + line + tl.minimum(start + n, last - 1)[None, :]
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
                "=r,l",
                [place.to(tl.int64)],
                dtype=tl.int32,
                is_pure=False,
                pack=1,
            )


@triton.jit
def lora_shrink_kernel(
    x,
    a,
    ranks,
    scales,
    order,
    starts,
    inner,
    b,
    width,
    n_rows,
    slot_stride,
    b_stride,
    rank_stride,
    count,
    end0,
    end1,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    STAGES: tl.constexpr,
    ASK: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """inner [t, PARTS, RANK] float32 = scale * (A x), for a tile of tokens and BLOCK_R ranks.

    a [S, PARTS, RANK, width]. The next kernel may start only once the one before has ended, so
    that it may read what that one wrote without waiting for this one. ASK: it will want B
    [S, RANK, n_rows] soon.
    """
    part = tl.program_id(1)
    i, k = tl.arange(0, TILE), tl.arange(0, BLOCK_K)
    r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    if PDL:
        gdc_wait()
        gdc_launch_dependents()
    slot, start, end = tile_of(starts, count, tl.program_id(0), TILE, BLOCK_S)
    if slot < count:
        rank = tl.load(ranks + slot * rank_stride + part)
        if ASK and PDL:
            low, high = part_bounds(part, PARTS, n_rows, end0, end1)
            if tl.program_id(2) == 0:
                ask_for_b(b + slot.to(tl.int64) * b_stride, rank, low, high, n_rows)
        if tl.program_id(2) * BLOCK_R < rank:
            live, known = start + i < end, r < rank
            token = tl.load(order + start + i, mask=live, other=0).to(tl.int64)
            rows = x + token[:, None] * width
            lines = a + slot.to(tl.int64) * slot_stride
            lines += ((part * RANK + r) * width)[None, :]
            # Two sums, so that a product need not wait for the one before.
            even = tl.zeros([TILE, BLOCK_R], tl.float32)
            odd = tl.zeros([TILE, BLOCK_R], tl.float32)
            for first in tl.range(0, width, 2 * BLOCK_K, num_stages=STAGES):
                place, then = first + k, first + BLOCK_K + k
                w = tl.load(
                    lines + place[:, None],
                    mask=(place < width)[:, None] & known[None, :],
                    other=0.0,
                )
                y = tl.load(
                    rows + place[None, :], mask=live[:, None] & (place < width)[None, :], other=0.0
                )
                u = tl.load(
                    lines + then[:, None], mask=(then < width)[:, None] & known[None, :], other=0.0
                )
                z = tl.load(
                    rows + then[None, :], mask=live[:, None] & (then < width)[None, :], other=0.0
                )
                even = dot(y, w, even, WIDE)
                odd = dot(z, u, odd, WIDE)
            total = (even + odd) * tl.load(scales + slot * rank_stride + part)
            target = inner + token[:, None] * (PARTS * RANK) + (part * RANK + r)[None, :]
            tl.store(target, total, mask=live[:, None] & known[None, :])


@triton.jit
def lora_lookup_kernel(
    ids,
    a,
    ranks,
    scales,
    slots,
    inner,
    slot_stride,
    rank_stride,
    RANK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PDL: tl.constexpr,
):
    """inner [t, RANK] float32 = scale * the token's row of A. a [S, V, RANK]."""
    token = tl.program_id(0).to(tl.int64)
    r = tl.arange(0, BLOCK_R)
    take_turn(PDL)
    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        known = r < tl.load(ranks + slot * rank_stride)
        row = a + slot * slot_stride + tl.load(ids + token).to(tl.int64) * RANK
        value = tl.load(row + r, mask=known, other=0.0).to(tl.float32)
        value = value * tl.load(scales + slot * rank_stride)
        tl.store(inner + token * RANK + r, value, mask=known)


@triton.jit
def lora_expand_kernel(
    y,
    b,
    inner,
    ranks,
    order,
    starts,
    n_rows,
    slot_stride,
    rank_stride,
    count,
    end0,
    end1,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """y [t, n_rows] += inner times B, for a tile of tokens and BLOCK_N outputs.

    b [S, RANK, n_rows]; end0, end1: where the outputs of the first two of three parts end.
    """
    i, r = tl.arange(0, TILE), tl.arange(0, BLOCK_R)
    base = tl.program_id(1) * BLOCK_N
    n = base + tl.arange(0, BLOCK_N)
    take_turn(PDL)
    slot, start, end = tile_of(starts, count, tl.program_id(0), TILE, BLOCK_S)
    if slot < count:
        live = start + i < end
        token = tl.load(order + start + i, mask=live, other=0).to(tl.int64)
        lines = b + slot.to(tl.int64) * slot_stride
        for part in tl.static_range(PARTS):
            first, last = part_bounds(part, PARTS, n_rows, end0, end1)
            rank = tl.load(ranks + slot * rank_stride + part)
            if (base < last) & (base + BLOCK_N > first) & (rank > 0):
                inside = (n >= first) & (n < last)
                acc = tl.zeros([TILE, BLOCK_N], tl.float32)
                for low in range(0, rank, BLOCK_R):
                    known = low + r < rank
                    place = (part * RANK + low + r)[None, :]
                    h = tl.load(
                        inner + token[:, None] * (PARTS * RANK) + place,
                        mask=live[:, None] & known[None, :],
                        other=0.0,
                    )
                    w = tl.load(
                        lines + (low + r)[:, None] * n_rows + n[None, :],
                        mask=known[:, None] & inside[None, :],
                        other=0.0,
                    )
                    acc = dot(h.to(b.dtype.element_ty), w, acc, WIDE)
                target = y + token[:, None] * n_rows + n[None, :]
                mask = live[:, None] & inside[None, :]
                before = tl.load(target, mask=mask, other=0.0).to(tl.float32)
                tl.store(target, (before + acc).to(y.dtype.element_ty), mask=mask)


@triton.jit
def add_part(
    acc,
    b,
    inner,
    ranks,
    slot,
    t,
    n,
    n_rows,
    slot_stride,
    rank_stride,
    first,
    last,
    part: tl.constexpr,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
):
    """acc [T, N] with what a part's outputs `first` to `last` get, for rows t of slots `slot`.

    Each row has a B of its own, so there is nothing for the matrix units to share. Other elements
    keep their bits.
    """
    rank = tl.load(ranks + slot * rank_stride + part, mask=slot >= 0, other=0)
    inside = (n >= first) & (n < last)
    lines = b + slot.to(tl.int64) * slot_stride
    extra = tl.zeros_like(acc)
    for low in range(0, tl.max(rank, axis=0), 16):
        for step in tl.static_range(16):
            r = low + step
            known = r < rank
            h = tl.load(inner + (t * PARTS + part) * RANK + r, mask=known, other=0.0)
            w = tl.load(
                lines[:, None] + r * n_rows + n[None, :],
                mask=known[:, None] & inside[None, :],
                other=0.0,
            )
            extra += h[:, None] * w.to(tl.float32)
    return tl.where((rank > 0)[:, None] & inside[None, :], acc + extra, acc)


@triton.jit
def add_adapters(
    acc,
    b,
    inner,
    ranks,
    slot,
    t,
    n,
    base,
    n_rows,
    slot_stride,
    rank_stride,
    end0,
    end1,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """`add_part` of every part that has some of the outputs n = base : base + BLOCK_N."""
    for part in tl.static_range(PARTS):
        first, last = part_bounds(part, PARTS, n_rows, end0, end1)
        if (base < last) & (base + BLOCK_N > first):
            acc = add_part(
                acc,
                b,
                inner,
                ranks,
                slot,
                t,
                n,
                n_rows,
                slot_stride,
                rank_stride,
                first,
                last,
                part,
                PARTS,
                RANK,
            )
    return acc
