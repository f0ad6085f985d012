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
# size: add_adapter: operands of a launch
# size: lora_expand_kernel: operands of a launch
# size: lora_lookup_kernel: operands of a launch
# size: lora_norm_kernel: operands of a launch
# size: lora_shrink_kernel: operands of a launch
# size: shrink_beside: operands of a launch
# size: times_a: operands of a launch


HELD = tl.constexpr(16)
"""Ranks of B that a program keeps in registers while it waits."""


@triton.jit
def read_b(lines, rank, live, n_all):
    """Of the first HELD ranks the lines of B, a tensor as `live` each.

    For one row of tokens, whose own B it is: nothing for the matrix units to share.
    """
    w = ()
    for step in tl.static_range(HELD):
        w += (tl.load(lines + step * n_all, mask=live & (step < rank), other=0.0),)  # type: ignore[assignment]
    return w


@triton.jit
def times_b(sums, w, h_rows, rank):
    """sums and `inner` times the lines that `read_b` has read."""
    for step in tl.static_range(HELD):
        h = tl.load(h_rows + step, mask=step < rank, other=0.0)
        # Rounded as the matrix units want it, as wherever B is multiplied with.
        sums += h.to(w[0].dtype).to(tl.float32) * w[step].to(tl.float32)
    return sums


@triton.jit
def add_higher(sums, lines, h_rows, rank, top, live, n_all):
    """sums and the ranks that `read_b` has not read, up to `top`, four at a time.

    Few: Triton takes many seconds for loops around many reads.
    """
    for low in tl.range(HELD, top, 4, num_stages=1):
        for step in tl.static_range(4):
            known = low + step < rank
            w = tl.load(lines + (low + step) * n_all, mask=live & known, other=0.0)
            h = tl.load(h_rows + low + step, mask=known, other=0.0)
            sums += h.to(w.dtype).to(tl.float32) * w.to(tl.float32)
    return sums


@triton.jit
def lora_order_kernel(slots, order, starts, tokens, count, BLOCK: tl.constexpr):
    """Sort tokens by slot, stably, those of slot -1 last: program s places those of slot s.

    starts [count + 2] int32: how many tokens have a slot below; the last program is that of -1.
    """
    mine = tl.program_id(0)
    if mine == count:
        tl.store(starts + count + 1, tokens)
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
    """(slot, first, end, tiles): order[first:end] is one of so many; none has slot >= count.

    With a `count` of one more than there are slots, the last one's tiles are those of base tokens.
    """
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
    return slot, start, end, tl.sum(tiles, axis=0)


@triton.jit
def _part_bounds(part, PARTS: tl.constexpr, n_rows, end0, end1):
    """(first, end) of the outputs of a part of at most three."""
    first = tl.where(part == 0, 0, tl.where(part == 1, end0, end1))
    end = tl.where(part == PARTS - 1, n_rows, tl.where(part == 0, end0, end1))
    return first, end


@triton.jit
def times_a(
    rows, live, lines, known, width, TILE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr, READ: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """[TILE, BLOCK_R] float32: rows of x, `live` ones, times lines of A, `known` ones.

    Each warp sums over columns of its own: one chain of products over all of them would take longer
    than reading them.
    """
    k, w = tl.arange(0, BLOCK_K), tl.arange(0, WARPS)
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
    return tl.sum(acc, axis=0)


@triton.jit
def shrink_beside(
    x, a, ranks, scales, order, starts, inner, program, width, slot_stride, rank_stride, count,
    PARTS: tl.constexpr, RANK: tl.constexpr, TILE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """What one program of `lora_shrink_kernel` does, for all ranks of a tile of tokens and a part,
    beside programs that do something else. It has let the next kernel start."""
    tile, part = program // PARTS, program % PARTS
    i, r = tl.arange(0, TILE), tl.arange(0, BLOCK_R)
    slot, start, end, _ = tile_of(starts, count, tile, TILE, BLOCK_S)
    live = start + i < end
    token = tl.load(order + start + i, mask=live, other=0).to(tl.int64)
    rank = tl.load(ranks + slot * rank_stride + part, mask=slot < count, other=0)
    scale = tl.load(scales + slot * rank_stride + part, mask=slot < count, other=0.0)
    lines = a + slot.to(tl.int64) * slot_stride + part * RANK * width
    if PDL:
        if rank > 0:
            ask_for(lines + tl.minimum(r, rank - 1) * width, width, 16)
        gdc_wait()
    target = inner + token[:, None] * (PARTS * RANK) + part * RANK
    for low in tl.range(0, rank, BLOCK_R, num_stages=1):
        known = low + r < rank
        row = tl.where(known, low + r, 0)
        sums = times_a(
            x + token * width, live, lines + row * width, known, width,
            TILE, BLOCK_R, BLOCK_K, WARPS, STAGES, "", WIDE,
        )  # fmt: skip
        place = target + (low + r)[None, :]
        tl.store(place, sums * scale, mask=live[:, None] & known[None, :])


@triton.jit
def lora_shrink_kernel(
    x, a, ranks, scales, order, starts, inner, b,
    width, n_rows, slot_stride, b_stride, rank_stride, count, end0, end1,
    PARTS: tl.constexpr, RANK: tl.constexpr, TILE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, WARPS: tl.constexpr, STAGES: tl.constexpr,
    FEW: tl.constexpr, BESIDE: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """inner [t, PARTS, RANK] float32 = scale * (A x), for a tile of tokens and BLOCK_R ranks.

    a [S, PARTS, RANK, width]. The next kernel may start only once the one before has ended, so
    that it may read what that one wrote without waiting for this one. A is asked for ahead of the
    wait, and B [S, RANK, n_rows], which comes next, where there are at most FEW tiles: more of it
    would drive other things out of the cache.

    BESIDE: the kernel before is a product that reads x as well and has let this one start when x
    was there. This one ends after it, so that whoever waits for this one has waited for both.
    """
    part, low = tl.program_id(1), tl.program_id(2) * BLOCK_R
    i, r = tl.arange(0, TILE), low + tl.arange(0, BLOCK_R)
    slot, start, end, tiles = tile_of(starts, count, tl.program_id(0), TILE, BLOCK_S)
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
            if tiles <= FEW:
                first, last = _part_bounds(part, PARTS, n_rows, end0, end1)
                ask_for(b + slot.to(tl.int64) * b_stride + row * n_rows + first, last - first, 64)
        gdc_wait()
        gdc_launch_dependents()
    # What other kernels wrote meanwhile must not be taken from a cache of before.
    READ: tl.constexpr = ".cg" if BESIDE else ""
    if low < rank:
        sums = times_a(
            x + token * width, live, lines, known, width,
            TILE, BLOCK_R, BLOCK_K, WARPS, STAGES, READ, WIDE,
        )  # fmt: skip
        target = inner + token[:, None] * (PARTS * RANK) + (part * RANK + r)[None, :]
        tl.store(target, sums * scale, mask=live[:, None] & known[None, :])
    if PDL and BESIDE:
        gdc_wait()


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

    b [S, RANK, width], inner [t, RANK]. The first ranks of B are read ahead of the wait. The stream
    of rows of rank 0 keeps its bits.
    """
    row = tl.program_id(0).to(tl.int64)
    i, one = tl.arange(0, BLOCK), tl.arange(0, 1)
    live = i < width
    slot = tl.load(slots + row + one)
    rank = tl.load(ranks + slot * rank_stride, mask=slot >= 0, other=0)
    lines = b + slot.to(tl.int64) * slot_stride + i
    h_rows = inner + row * RANK + one
    w = read_b(lines, rank, live, width)
    take_turn(PDL)
    total = tl.load(y + row * width + i, mask=live, other=0.0).to(tl.float32)
    extra = times_b(tl.zeros_like(total), w, h_rows, rank)
    extra = add_higher(extra, lines, h_rows, rank, tl.max(rank, axis=0), live, width)
    total = tl.where(rank > 0, total + extra, total)
    before = tl.load(residual + row * width + i, mask=live, other=0.0)
    # Rounded once: the stream that later layers read is the one that is normed here.
    stream = (before.to(tl.float32) + total).to(residual.dtype.element_ty)
    tl.store(residual + row * width + i, stream, mask=live)
    total = stream.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(total * total, axis=0) / width + eps)
    g = tl.load(weight + i, mask=live, other=0.0).to(tl.float32)
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
    slot, start, end, _ = tile_of(starts, count, tl.program_id(0), TILE, BLOCK_S)
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


@triton.jit
def add_adapter(
    acc, b, inner, slot, rank, part, n, n_live, n_all, slot_stride,
    PARTS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """acc [N] with what a part's outputs n get, for one row of rank `rank`.

    The end of a product of one row, of outputs of one part. A row of rank 0 keeps its bits.
    """
    lines = b + slot.to(tl.int64) * slot_stride
    extra = tl.zeros_like(acc)
    for low in range(0, rank, 16):
        for step in tl.static_range(16):
            r = tl.minimum(low + step, rank - 1)
            h = tl.where(low + step < rank, tl.load(inner + part * RANK + r), 0.0)
            w = tl.load(lines + r * n_all + n, mask=n_live, other=0.0)
            # Rounded as the matrix units want it, as wherever B is multiplied with.
            extra += h.to(b.dtype.element_ty).to(tl.float32) * w.to(tl.float32)
    return tl.where(rank > 0, acc + extra, acc)
