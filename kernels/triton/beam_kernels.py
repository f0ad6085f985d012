"""A beam search between the levels of a model: two kernels a level, whatever the width.

A score and its place are one number of 64 bits, the score in the upper ones so that numbers compare
as scores do, so the largest of many is found with its place in one reduction; of equal scores the
first place. Invariant: a row is one program's, or several programs' that share nothing of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.device_functions import INT32_MAX, take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: beam_begin_kernel: operands of a launch
# size: beam_level: operands of a launch
# size: beam_part_kernel: operands of a launch
# size: beam_select_kernel: operands of a launch
# size: row_sums: operands of a launch

NOTHING = tl.constexpr(-(2**63))
HEADER = tl.constexpr(5)


@triton.jit
def packed(score, place):
    """int64, ordered by the score, then by the place, the first one largest; scores are no NaN."""
    bits = score.to(tl.int32, bitcast=True)
    bits = bits ^ ((bits >> 31) & INT32_MAX)
    return (bits.to(tl.int64) << 32) | (-place + INT32_MAX).to(tl.int64)


@triton.jit
def score_of(number):
    """The score of a packed number."""
    bits = (number >> 32).to(tl.int32)
    bits = bits ^ ((bits >> 31) & INT32_MAX)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def place_of(number):
    """Its place."""
    return -(number & INT32_MAX).to(tl.int32) + INT32_MAX


@triton.jit
def beam_begin_kernel(
    inputs, known_slots, known_tokens, known_lengths, lengths, table, positions, ends, ids, scores,
    nodes, previous, input_stride, slots_stride, tokens_stride, table_stride, level_stride, first,
    context, scratch, depth,
    W: tl.constexpr, LEVELS_PAD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program copies BLOCK slots of a row for one of its guesses; the first of a row's blocks
    writes what is known of all its levels."""
    line, block = tl.program_id(0), tl.program_id(1)
    row, j = line // W, line % W
    given = inputs + row.to(tl.int64) * input_stride
    slots = table + line.to(tl.int64) * table_stride
    take_turn(PDL)
    where = tl.load(given).to(tl.int64)
    length = tl.load(given + 1)
    if length < 0:
        length = tl.load(known_lengths + where)
    own = known_slots + where * slots_stride
    entries = tl.maximum(length - first, 0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(own + first + i, mask=i < entries, other=0)
    tl.store(slots + i, slot, mask=i < entries)
    if block == 0:
        level = tl.arange(0, LEVELS_PAD)
        place = level * level_stride + tl.where(level == 0, row, line)
        live = (level < depth) & ((level > 0) | (level + j == 0))
        position = tl.minimum(length + level, context - 1)
        tl.store(positions + place, position.to(tl.int64), mask=live)
        tl.store(ends + place, entries + level + 1, mask=live)
        if j == 0:
            token = tl.load(given + HEADER)
            if token < 0:
                token = tl.load(known_tokens + where * tokens_stride + length)
            tl.store(lengths + row, length)
            tl.store(ids + row, token)
            tl.store(scores + row, 0.0)
            tl.store(nodes + row, -1)
            tl.store(previous + row, tl.load(own + tl.maximum(length - 1, 0)))
            tl.store(slots + entries, scratch + line)


@triton.jit
def beam_part_kernel(
    logits, numbers, tops, sums, masks, inputs, vocabulary, width, words, input_stride,
    W: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, MORE: tl.constexpr,
    MAPPED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Of BLOCK logits of a guess: the W largest, packed with their columns, the largest, and the
    sum of exp(logit - largest). numbers [n, programs, W], tops and sums [n, programs].

    MASKED: the guess is the row's only one, and what the row's mask forbids does not count, unless
    with MORE a second id is known.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = part * BLOCK + tl.arange(0, BLOCK)
    live = i < width
    take_turn(PDL)
    x = tl.load(logits + row * width + i, mask=live, other=float("-inf")).to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))  # ids are valid, whatever the model gave
    if MASKED:
        given = inputs + row * input_stride
        masked = tl.load(given + 2) > 0
        if MORE:
            masked = masked & (tl.load(given + HEADER + 1) < 0)
        if masked:
            name = tl.load(vocabulary + i, mask=live, other=0) if MAPPED else i
            word = tl.load(masks + row * words + name // 32, mask=live, other=0)
            x = tl.where(((word >> (name % 32)) & 1) != 0, x, float("-inf"))
    top = tl.max(x, axis=0)
    base = tl.where(top == float("-inf"), 0.0, top)
    at = row * tl.num_programs(1) + part
    tl.store(tops + at, top)
    tl.store(sums + at, tl.sum(tl.exp(x - base), axis=0))
    number = tl.where(live, packed(x, i), NOTHING)
    for k in tl.static_range(W):
        best = tl.max(number, axis=0)
        tl.store(numbers + at * W + k, best)
        number = tl.where(number == best, NOTHING, number)


@triton.jit
def row_sums(tops, sums, n, live, parts, PARTS_PAD: tl.constexpr):
    """log(sum(exp(logits))) of guesses n [S], of what `beam_part_kernel` left of their parts."""
    p = tl.arange(0, PARTS_PAD)
    place, there = n[:, None] * parts + p[None, :], live[:, None] & (p < parts)[None, :]
    top = tl.load(tops + place, mask=there, other=float("-inf"))
    largest = tl.max(top, axis=1)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    part = tl.load(sums + place, mask=there, other=0.0) * tl.exp(top - base[:, None])
    whole = tl.sum(part, axis=1)
    # A sum that is not zero is at least 1, the term of the largest.
    return tl.where(whole > 0, base + tl.log(tl.maximum(whole, 1.0)), float("-inf"))


@triton.jit
def beam_level(
    lengths, ids, scores, nodes, previous, table, row, level, known, count, table_stride,
    level_stride, first, scratch, scratch_stride, score, name, flat, inside,
    W: tl.constexpr, W_PAD: tl.constexpr, LEVELS_PAD: tl.constexpr,
):  # fmt: skip
    """Write the next level: of the row's guesses, score, name and flat [S, W_PAD], the W best."""
    k = tl.arange(0, W_PAD)
    number = tl.where(inside, packed(score, flat), NOTHING)
    picked = tl.full([W_PAD], NOTHING, tl.int64)
    for j in tl.static_range(W):
        best = tl.max(tl.max(number, axis=1), axis=0)
        picked = tl.where(k == j, best, picked)
        number = tl.where(number == best, NOTHING, number)
    live = k < W
    best = tl.where(live, place_of(picked), 0)
    same = flat[:, :, None] == best[None, None, :]
    same = same & inside[:, :, None]
    following = tl.sum(tl.sum(tl.where(same, name[:, :, None], 0), axis=0), axis=0)
    forced = known >= 0
    parent = tl.where(forced, 0, best // W)
    line = row * W + k
    place = (level + 1) * level_stride + line
    alone = tl.where(k == 0, 0.0, float("-inf"))
    tl.store(ids + place, tl.where(forced, known, following), mask=live)
    tl.store(scores + place, tl.where(forced, alone, score_of(picked)), mask=live)
    tl.store(nodes + place, tl.where(forced, -1, best + count), mask=live)
    above = scratch + level * scratch_stride + row * W + parent
    tl.store(previous + place, above, mask=live)
    length = tl.load(lengths + row)
    column = tl.maximum(length - first, 0) + tl.arange(0, LEVELS_PAD)
    old = (tl.arange(0, LEVELS_PAD) <= level)[None, :] & live[:, None]
    source = table + (row * W + parent).to(tl.int64) * table_stride
    target = table + line.to(tl.int64) * table_stride
    path = tl.load(source[:, None] + column[None, :], mask=old, other=0)
    tl.debug_barrier()  # every path is read before one is written
    tl.store(target[:, None] + column[None, :], path, mask=old)
    own = scratch + (level + 1) * scratch_stride + line
    tl.store(target + tl.maximum(length - first, 0) + level + 1, own, mask=live)


@triton.jit
def beam_select_kernel(
    numbers, tops, sums, inputs, lengths, vocabulary, ids, scores, nodes, previous, table, found,
    parts, level, count, plane, found_stride, input_stride, table_stride, level_stride, first,
    scratch, scratch_stride,
    SIZE: tl.constexpr, SIZE_PAD: tl.constexpr, W: tl.constexpr, W_PAD: tl.constexpr,
    BLOCK: tl.constexpr, PARTS_PAD: tl.constexpr, LEVELS_PAD: tl.constexpr, NEXT: tl.constexpr,
    MORE: tl.constexpr, MAPPED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row a program: what `beam_part_kernel` left of its SIZE guesses, joined; see
    `BeamOps.beam_step`. `found` has planes of `plane` numbers. With MORE, further ids may be known;
    NEXT: there is a level behind this one."""
    row = tl.program_id(0)
    s, k, c = tl.arange(0, SIZE_PAD), tl.arange(0, W_PAD), tl.arange(0, BLOCK)
    n, live = row * SIZE + s, s < SIZE
    take_turn(PDL)
    number = tl.load(
        numbers + (n * parts * W)[:, None] + c[None, :],
        mask=live[:, None] & (c < parts * W)[None, :],
        other=NOTHING,
    )
    chosen = tl.full([SIZE_PAD, W_PAD], NOTHING, tl.int64)
    for j in tl.static_range(W):
        best = tl.max(number, axis=1)
        chosen = tl.where((k == j)[None, :], best[:, None], chosen)
        number = tl.where(number == best[:, None], NOTHING, number)
    inside = live[:, None] & (k < W)[None, :]
    before = tl.load(scores + level * level_stride + n, mask=live, other=float("-inf"))
    base = before - row_sums(tops, sums, n, live, parts, PARTS_PAD)
    score = score_of(chosen) + base[:, None]
    score = tl.where(score == score, score, float("-inf"))  # nothing allowed: no sum either
    column = tl.where(inside, place_of(chosen), 0)
    name = tl.load(vocabulary + column, mask=inside, other=0) if MAPPED else column
    known = tl.load(lengths + row) * 0 - 1
    if MORE:
        known = tl.load(inputs + row.to(tl.int64) * input_stride + HEADER + level + 1)
    flat = s[:, None] * W + k[None, :]
    place = found + row * found_stride + count + flat
    above = tl.load(nodes + level * level_stride + n, mask=live, other=-1)
    shown = tl.where(known >= 0, float("-inf"), score)
    tl.store(place, name, mask=inside)
    tl.store(place + plane, above[:, None] + flat * 0, mask=inside)
    tl.store(place + 2 * plane, shown.to(tl.int32, bitcast=True), mask=inside)
    if NEXT:
        beam_level(
            lengths, ids, scores, nodes, previous, table, row, level, known, count, table_stride,
            level_stride, first, scratch, scratch_stride, score, name, flat, inside,
            W, W_PAD, LEVELS_PAD,
        )  # fmt: skip
