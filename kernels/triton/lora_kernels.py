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

from branchline.kernels.triton.device_functions import ask_for, dot, take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: _times_b: operands of a launch
# size: lora_finish_kernel: operands of a launch
# size: lora_expand_kernel: operands of a launch
# size: lora_lookup_kernel: operands of a launch
# size: lora_norm_kernel: operands of a launch
# size: lora_shrink_kernel: operands of a launch


@triton.jit
def lora_order_kernel(slots, order, starts, tokens, count, BLOCK: tl.constexpr):
    """Sort tokens by slot, stably, those of slot -1 last: program s places those of slot s.

    starts [count + 1] int32: how many tokens have a slot below; the last program is that of -1.
    """
    mine = tl.program_id(0)
    i = tl.arange(0, BLOCK)
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
def lora_settle_kernel(starts):
    """Nothing, behind the kernel that sorts: whatever starts after this one may read what that one
    wrote without waiting for its turn."""


@triton.jit
def tile_of(starts, count, tile, TILE: tl.constexpr, BLOCK_S: tl.constexpr):
    """(slot, first, end): the tile is order[first:end]; slot >= count where there is none."""
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
def _part_bounds(part, PARTS: tl.constexpr, n_rows, end0, end1):
    """(first, end) of the outputs of a part of at most three."""
    first = tl.where(part == 0, 0, tl.where(part == 1, end0, end1))
    end = tl.where(part == PARTS - 1, n_rows, tl.where(part == 0, end0, end1))
    return first, end


@triton.jit
def lora_shrink_kernel(
    x,
    a,
    ranks,
    scales,
    order,
    starts,
    inner,
    width,
    slot_stride,
    rank_stride,
    count,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    BESIDE: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """inner [t, PARTS, RANK] float32 = scale * (A x), for a tile of tokens and BLOCK_R ranks.

    a [S, PARTS, RANK, width]. The next kernel may start only once the one before has ended, so
    that it may read what that one wrote without waiting for this one. A is asked for ahead of the
    wait.

    BESIDE: the kernel before is a product that reads x as well and has let this one start when x
    was there. This one ends after it, so that whoever waits for this one has waited for both.
    """
    part, low = tl.program_id(1), tl.program_id(2) * BLOCK_R
    i, k, w = tl.arange(0, TILE), tl.arange(0, BLOCK_K), tl.arange(0, WARPS)
    r = low + tl.arange(0, BLOCK_R)
    slot, start, end = tile_of(starts, count, tl.program_id(0), TILE, BLOCK_S)
    live = start + i < end
    token = tl.load(order + start + i, mask=live, other=0).to(tl.int64)
    rank = tl.load(ranks + slot * rank_stride + part, mask=slot < count, other=0)
    scale = tl.load(scales + slot * rank_stride + part, mask=slot < count, other=0.0)
    known = r < rank
    row = tl.where(known, r, 0)
    lines = a + slot.to(tl.int64) * slot_stride + (part * RANK + row) * width
    if PDL and BESIDE:
        gdc_launch_dependents()
    elif PDL:
        if low < rank:
            ask_for(lines, width, 64)
        gdc_wait()
        gdc_launch_dependents()
    # What other kernels wrote meanwhile must not be taken from a cache of before.
    READ: tl.constexpr = ".cg" if BESIDE else ""
    if low < rank:
        rows = x + token * width
        # Each warp sums over columns of its own: one chain of products over all of them would take
        # longer than reading them.
        acc = tl.zeros([WARPS, TILE, BLOCK_R], tl.float32)
        for first in tl.range(0, width, WARPS * BLOCK_K, num_stages=STAGES):
            place = first + w[:, None] * BLOCK_K + k[None, :]
            w_live = place < width
            u = tl.load(
                lines[None, None, :] + place[:, :, None],
                mask=w_live[:, :, None] & known[None, None, :],
                other=0.0,
            )
            y = tl.load(
                rows[None, :, None] + place[:, None, :],
                mask=live[None, :, None] & w_live[:, None, :],
                other=0.0,
                cache_modifier=READ,
            )
            acc = dot(y, u, acc, WIDE)
        target = inner + token[:, None] * (PARTS * RANK) + (part * RANK + r)[None, :]
        tl.store(target, tl.sum(acc, axis=0) * scale, mask=live[:, None] & known[None, :])
    if PDL and BESIDE:
        gdc_wait()


@triton.jit
def _sixteen(b, slot, rank, low, n, n_live, n_all, slot_stride):
    """Ranks `low` to `low + 15` of B for outputs n: [16, N]; 0 from `rank` on."""
    r = low + tl.arange(0, 16)
    lines = b + slot.to(tl.int64) * slot_stride + n[None, :]
    return tl.load(
        lines + r[:, None] * n_all, mask=(r < rank)[:, None] & n_live[None, :], other=0.0
    )


@triton.jit
def _times_b(h_row, w, b, slot, rank, n, n_live, n_all, slot_stride, BLOCK: tl.constexpr):
    """A row of inner times B, for outputs n: [N] float32. w: the first sixteen ranks of B."""
    r = tl.arange(0, 16)
    extra = tl.zeros([BLOCK], tl.float32)
    for low in tl.range(0, rank, 16, num_stages=1):
        if low > 0:
            w = _sixteen(b, slot, rank, low, n, n_live, n_all, slot_stride)
        h = tl.load(h_row + low + r, mask=low + r < rank, other=0.0)
        # Rounded as the matrix units want it, as wherever B is multiplied with.
        h = h.to(b.dtype.element_ty).to(tl.float32)
        extra += tl.sum(h[:, None] * w.to(tl.float32), axis=0)
    return extra


@triton.jit
def lora_finish_kernel(
    y,
    out,
    b,
    inner,
    ranks,
    slots,
    n_rows,
    slot_stride,
    rank_stride,
    end0,
    end1,
    PARTS: tl.constexpr,
    RANK: tl.constexpr,
    GATED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """y [t, n_rows] and what B adds to it: one row and BLOCK outputs of one part a program.

    The first sixteen ranks of B [S, RANK, n_rows] are read ahead of the wait. Into y itself, where
    rows of rank 0 are not touched; or with GATED, where the halves of y are gate and up, silu(gate)
    * up into out [t, n_rows / 2].
    """
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    n = first + tl.arange(0, BLOCK)
    half = n_rows // 2 if GATED else n_rows
    live = n < half
    part = first * 0
    if PARTS > 1 and not GATED:
        part += (first >= end0).to(tl.int32)
    if PARTS > 2:
        part += (first >= end1).to(tl.int32)
    slot = tl.load(slots + row)
    rank = tl.load(ranks + slot * rank_stride + part, mask=slot >= 0, other=0)
    w = _sixteen(b, slot, rank, 0, n, live, n_rows, slot_stride)
    h_row = inner + (row * PARTS + part) * RANK
    line = y + row * n_rows + n
    if GATED:
        up_rank = tl.load(ranks + slot * rank_stride + 1, mask=slot >= 0, other=0)
        u = _sixteen(b, slot, up_rank, 0, half + n, live, n_rows, slot_stride)
        take_turn(PDL)
        gate = tl.load(line, mask=live, other=0.0).to(tl.float32)
        up = tl.load(line + half, mask=live, other=0.0).to(tl.float32)
        if rank > 0:
            gate += _times_b(h_row, w, b, slot, rank, n, live, n_rows, slot_stride, BLOCK)
        if up_rank > 0:
            up += _times_b(
                h_row + RANK, u, b, slot, up_rank, half + n, live, n_rows, slot_stride, BLOCK
            )
        gate = gate / (1.0 + tl.exp(-gate)) * up
        tl.store(out + row * half + n, gate.to(out.dtype.element_ty), mask=live)
    else:
        take_turn(PDL)
        if rank > 0:
            total = tl.load(line, mask=live, other=0.0).to(tl.float32)
            total += _times_b(h_row, w, b, slot, rank, n, live, n_rows, slot_stride, BLOCK)
            tl.store(line, total.to(y.dtype.element_ty), mask=live)


@triton.jit
def lora_norm_kernel(
    y,
    residual,
    weight,
    out,
    b,
    inner,
    ranks,
    slots,
    slot_stride,
    rank_stride,
    width,
    eps,
    RANK: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """`rms_norm_kernel` with ADD, of y [t, width] and what B adds to it; one row a program.

    b [S, RANK, width], inner [t, RANK]. The first sixteen ranks of B are read ahead of the wait.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    live = i < width
    g = tl.load(weight + i, mask=live, other=0.0).to(tl.float32)
    slot = tl.load(slots + row)
    rank = tl.load(ranks + slot * rank_stride, mask=slot >= 0, other=0)
    w = _sixteen(b, slot, rank, 0, i, live, width, slot_stride)
    take_turn(PDL)
    total = tl.load(y + row * width + i, mask=live, other=0.0).to(tl.float32)
    if rank > 0:
        h_row = inner + row * RANK
        total += _times_b(h_row, w, b, slot, rank, i, live, width, slot_stride, BLOCK)
    before = tl.load(residual + row * width + i, mask=live, other=0.0)
    # Rounded once: the stream that later layers read is the one that is normed here.
    stream = (before.to(tl.float32) + total).to(residual.dtype.element_ty)
    tl.store(residual + row * width + i, stream, mask=live)
    total = stream.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / width + eps)
    tl.store(out + row * width + i, (total * scale * g).to(out.dtype.element_ty), mask=live)


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
    span,
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
    """y [t, n_rows] += inner times B, for a tile of tokens and `span` outputs, BLOCK_N at a time.

    b [S, RANK, n_rows]; end0, end1: where the outputs of the first two of three parts end.
    """
    i, r = tl.arange(0, TILE), tl.arange(0, BLOCK_R)
    low_n = tl.program_id(1) * span
    high_n = tl.minimum(low_n + span, n_rows)
    take_turn(PDL)
    slot, start, end = tile_of(starts, count, tl.program_id(0), TILE, BLOCK_S)
    if slot < count:
        live = start + i < end
        token = tl.load(order + start + i, mask=live, other=0).to(tl.int64)
        lines = b + slot.to(tl.int64) * slot_stride
        for part in tl.static_range(PARTS):
            first, last = _part_bounds(part, PARTS, n_rows, end0, end1)
            rank = tl.load(ranks + slot * rank_stride + part)
            if rank > 0:
                from_n = tl.maximum(first, low_n)
                to_n = tl.minimum(last, high_n)
                for base in range(from_n // BLOCK_N * BLOCK_N, to_n, BLOCK_N):
                    n = base + tl.arange(0, BLOCK_N)
                    inside = (n >= from_n) & (n < to_n)
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
