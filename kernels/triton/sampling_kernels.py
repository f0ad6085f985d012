"""Choosing one token a row: cuts found by search, then the largest of perturbed logits.

Invariant: nothing is sorted and nothing depends on other rows, though programs that share a row
wait for each other. A draw is the argmax of
logit / temperature - log(E) over the kept tokens, with E exponential and a function of the row's
seed, its position and the token's id alone; that argmax follows softmax(logits / temperature) over
what is kept (Gumbel, 1954). Logits are compared by `order`, a signed integer that sorts as they do.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.device_functions import INT32_MAX, take_turn

INT32_MIN = tl.constexpr(-(2**31))
FANOUT = tl.constexpr(16)
"""Into how many parts one pass over a row cuts the range of orders that is left."""


# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: _end_of_ties: operands of a launch
# size: _largest_with: operands of a launch
# size: _masses: operands of a launch
# size: _top_of: operands of a launch
# size: cut_kernel: operands of a launch
# size: draw_kernel: operands of a launch


@triton.jit
def _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED: tl.constexpr):
    """Logits of a row at i, -inf where the mask refuses or the row has ended."""
    live = i < vocabulary
    x = tl.load(logits + row * vocabulary + i, mask=live, other=float("-inf")).to(tl.float32)
    if MASKED:
        # Compared after it is spread: the interpreter spreads numbers, not truth values.
        asked = (i * 0 + masked) != 0
        word = tl.load(bitmask + row * words + i // 32, mask=live & asked, other=-1)
        x = tl.where(((word >> (i % 32)) & 1) != 0, x, float("-inf"))
    return x


@triton.jit
def _order(x):
    """int32 that compares as the float does; -0 counts as 0."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & INT32_MAX)


@triton.jit
def _scramble(h):
    """Finalizer of MurmurHash3 (Appleby): every bit of a uint32 moves every other."""
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def _stream(seed, position):
    """Two uint32 for a (seed, position): output `position` of the seed's SplitMix64 stream."""
    golden = tl.full([1], 0x9E3779B97F4A7C15, tl.uint64)
    state = seed.to(tl.uint64) + (position.to(tl.uint64) + 1) * golden
    state = (state ^ (state >> 30)) * tl.full([1], 0xBF58476D1CE4E5B9, tl.uint64)
    state = (state ^ (state >> 27)) * tl.full([1], 0x94D049BB133111EB, tl.uint64)
    state = state ^ (state >> 31)
    return state.to(tl.uint32), (state >> 32).to(tl.uint32)


@triton.jit
def _log_exponential(i, low, high):
    """log(E) of an exponential number for each token i."""
    h = _scramble(i.to(tl.uint32) * tl.full([1], 0x9E3779B1, tl.uint32) ^ low)
    h = _scramble(h + high)
    # 24 bits are exact in float32; small ones are where draws are decided, so no 1 - v for them.
    v = ((h >> 8).to(tl.float32) + 0.5) * (1.0 / 16777216.0)
    tail = (h & 255).to(tl.float32) * (1.0 / 4294967296.0)
    v = tl.where(v < 0.001, v + tail, v)
    return tl.log(tl.where(v < 0.001, v + 0.5 * v * v, -tl.log(1.0 - v)))


@triton.jit
def _value(order):
    """The float of an order."""
    return (order ^ ((order >> 31) & INT32_MAX)).to(tl.float32, bitcast=True)


@triton.jit
def _meet(arrived, met, parts, TOGETHER: tl.constexpr):
    """Behind it, all threads of all programs of a row see what each of them wrote before it.

    It is the `met`-th time that they meet, counted from 1.
    """
    tl.debug_barrier()
    if TOGETHER:
        tl.atomic_add(arrived, 1)
        while tl.atomic_add(arrived, 0) < met * parts:
            pass
        tl.debug_barrier()


@triton.jit
def _notes(scratch, met, blocks):
    """Where each block of a row leaves FANOUT numbers for the `met`-th meeting.

    There are two places, used in turn: by the time one is written again all have read it.
    """
    return scratch + (met % 2) * blocks * FANOUT


@triton.jit
def _noted(notes, blocks, LARGEST: tl.constexpr, BLOCK_P: tl.constexpr):
    """Sums [FANOUT] of what the blocks left, or with LARGEST maxima.

    In an order that does not depend on how many programs share the row.
    """
    j, p = tl.arange(0, FANOUT), tl.arange(0, BLOCK_P)
    # .cg: what other multiprocessors wrote is in L2, not in this one's L1.
    every = tl.load(
        notes + p[:, None] * FANOUT + j[None, :],
        mask=(p < blocks)[:, None],
        other=float("-inf") if LARGEST else 0.0,
        cache_modifier=".cg",
    )
    return tl.max(every, axis=0) if LARGEST else tl.sum(every, axis=0)


@triton.jit
def _largest_with(
    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks, arrived, met,
    parts, top, inv_temperature, target, floor,
    BY_MASS: tl.constexpr, BLOCK: tl.constexpr, TOGETHER: tl.constexpr, BLOCK_P: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The largest order whose tokens and those above it reach `target`.

    They are counted, or with BY_MASS weighed by exp((x - top) * inv_temperature). `floor` is an
    order that reaches it. Each pass over the row cuts the range that is left into FANOUT parts;
    where tokens are counted and one is left in the range, a last pass finds it. Also returns what
    the tokens strictly above have, and how often the programs have met.
    """
    low = floor.to(tl.int64)
    high = tl.full([], INT32_MAX, tl.int64) + 1
    above = 0.0
    inside = 2.0  # tokens from low to below high, or 2 where that is not known
    j = tl.arange(0, FANOUT)
    while (high - low > 1) & (inside != 1.0):
        step = tl.maximum((high - low + FANOUT - 1) // FANOUT, 1)
        pivots = low + (j + 1) * step
        edges = _value(tl.minimum(pivots, INT32_MAX).to(tl.int32))
        # Among the orders of NaN: those below that of -inf are reached by all, the others by none.
        edges = tl.where(edges == edges, edges, tl.where(pivots < 0, float("-inf"), float("inf")))
        edges = tl.where(pivots < high, edges, float("inf"))
        met += 1
        notes = _notes(scratch, met, blocks)
        for start in range(first, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED)
            value = tl.exp((x - top) * inv_temperature) if BY_MASS else tl.where(x == x, 1.0, 0.0)
            value = tl.where(i < vocabulary, value, 0.0)
            reached = tl.where(x[:, None] >= edges[None, :], value[:, None], 0.0)
            tl.store(notes + start // BLOCK * FANOUT + j, tl.sum(reached, axis=0))
        _meet(arrived, met, parts, TOGETHER)
        sums = _noted(notes, blocks, False, BLOCK_P)
        count = tl.sum(((sums >= target) & (pivots < high)).to(tl.int64), axis=0)
        next_high = tl.minimum(low + (count + 1) * step, high)
        # What the first pivot that fails has: with the last round that pivot is low + 1.
        failed = tl.sum(tl.where((j == count) & (pivots < high), sums, 0.0), axis=0)
        above = tl.where(next_high < high, failed, above)
        low_has = tl.sum(tl.where(j == count - 1, sums, 0.0), axis=0)
        low = low + count * step
        high = next_high
        if not BY_MASS:
            inside = tl.where(count > 0, low_has - above, 2.0)
    if high - low > 1:
        met += 1
        notes = _notes(scratch, met, blocks)
        for start in range(first, end, BLOCK):
            i = start + tl.arange(0, BLOCK)
            x = _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED)
            found = tl.max(tl.where(_order(x) < high, x, float("-inf")), axis=0)
            tl.store(notes + start // BLOCK * FANOUT + j, found + j * 0.0)
        _meet(arrived, met, parts, TOGETHER)
        most = tl.max(_noted(notes, blocks, True, BLOCK_P), axis=0)
        low = _order(most).to(tl.int64)
    return low.to(tl.int32), above, met


@triton.jit
def _masses(
    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks, arrived, met,
    parts, top, inv_temperature, cut,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr, BLOCK_P: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What the tokens above order `cut` weigh, and what those of that order do."""
    j = tl.arange(0, FANOUT)
    notes = _notes(scratch, met, blocks)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED)
        weight = tl.exp((x - top) * inv_temperature)
        order = _order(x)
        more = tl.sum(tl.where(order > cut, weight, 0.0), axis=0)
        level = tl.sum(tl.where((order == cut) & (i < vocabulary), weight, 0.0), axis=0)
        both = tl.where(j == 0, more, tl.where(j == 1, level, 0.0))
        tl.store(notes + start // BLOCK * FANOUT + j, both)
    _meet(arrived, met, parts, TOGETHER)
    both = _noted(notes, blocks, False, BLOCK_P)
    return tl.sum(tl.where(j == 0, both, 0.0), axis=0), tl.sum(tl.where(j == 1, both, 0.0), axis=0)


@triton.jit
def _end_of_ties(
    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks, arrived, met,
    parts, cut, ties,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr, BLOCK_P: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The id after the first `ties` tokens of order `cut`. The programs meet twice."""
    j, p = tl.arange(0, FANOUT), tl.arange(0, BLOCK_P)
    notes = _notes(scratch, met, blocks)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED)
        equal = ((_order(x) == cut) & (i < vocabulary)).to(tl.int32)
        tl.store(notes + start // BLOCK * FANOUT, tl.sum(equal, axis=0).to(tl.float32))
    _meet(arrived, met, parts, TOGETHER)
    later = _notes(scratch, met + 1, blocks)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        earlier = p < tl.minimum(start // BLOCK, blocks)
        seen = tl.load(notes + p * FANOUT, mask=earlier, other=0.0, cache_modifier=".cg")
        x = _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED)
        equal = ((_order(x) == cut) & (i < vocabulary)).to(tl.int32)
        rank = tl.sum(seen, axis=0) + tl.cumsum(equal, axis=0).to(tl.float32)
        limit = tl.max(tl.where((equal > 0) & (rank <= ties), i + 1, 0), axis=0)
        tl.store(later + start // BLOCK * FANOUT + j, limit.to(tl.float32) + j * 0.0)
    _meet(arrived, met + 1, parts, TOGETHER)
    return tl.max(_noted(later, blocks, True, BLOCK_P), axis=0).to(tl.int32)


@triton.jit
def _top_of(
    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks, arrived, met,
    parts,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr, BLOCK_P: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The largest logit of the row."""
    j = tl.arange(0, FANOUT)
    notes = _notes(scratch, met, blocks)
    for start in range(first, end, BLOCK):
        i = start + tl.arange(0, BLOCK)
        x = _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED)
        tl.store(notes + start // BLOCK * FANOUT + j, tl.max(x, axis=0) + j * 0.0)
    _meet(arrived, met, parts, TOGETHER)
    return tl.max(_noted(notes, blocks, True, BLOCK_P), axis=0)


@triton.jit(do_not_specialize=["parts"])
def cut_kernel(
    logits, bitmask, need, inv_temperatures, top_ks, top_ps, min_ps, scratch, arrived, cuts,
    limits, floors, vocabulary, words, span, parts,
    BLOCK: tl.constexpr, TOGETHER: tl.constexpr, BLOCK_P: tl.constexpr, MASKED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """What a row keeps: tokens x >= floor of order > cut, and of order == cut with id < limit.

    A program reads `span` tokens of a row, whole blocks. With TOGETHER there are `parts` of them,
    which meet after each pass over the row, so all must be running at once. Scratch: float32
    [n, 2, blocks of the vocabulary, FANOUT]; arrived: int32 [n, 2], zero before and after.
    """
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    take_turn(PDL)
    masked = tl.load(need + row).to(tl.int32)
    inv_temperature = tl.load(inv_temperatures + row)
    top_k, top_p, min_p = tl.load(top_ks + row), tl.load(top_ps + row), tl.load(min_ps + row)
    first = part * span
    end = tl.minimum(first + span, vocabulary)
    blocks = tl.cdiv(vocabulary, BLOCK)
    scratch += row * 2 * blocks * FANOUT
    arrived += row * 2
    cut = tl.full([], INT32_MIN, tl.int32)
    limit = vocabulary
    floor = -float("inf")
    last = False
    if (inv_temperature > 0) & ((top_k > 0) | (top_p < 1.0) | (min_p > 0)):
        met = tl.full([], 1, tl.int32)
        top = _top_of(
            logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks, arrived,
            met, parts, BLOCK, TOGETHER, BLOCK_P, MASKED,
        )  # fmt: skip
        if (top > -float("inf")) & (top < float("inf")):
            if min_p > 0:
                floor = top + tl.log(min_p) / inv_temperature
            ties = -1.0  # how many tokens of order `cut` are kept; -1 = all
            if (top_k > 0) & (top_k < vocabulary):
                cut, above, met = _largest_with(
                    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks,
                    arrived, met, parts, top, inv_temperature, top_k.to(tl.float32), cut,
                    False, BLOCK, TOGETHER, BLOCK_P, MASKED,
                )  # fmt: skip
                ties = top_k.to(tl.float32) - above
            if top_p < 1.0:
                met += 1
                more, level = _masses(
                    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks,
                    arrived, met, parts, top, inv_temperature, cut,
                    BLOCK, TOGETHER, BLOCK_P, MASKED,
                )  # fmt: skip
                # One weight of order `cut` for each kept tie; all of them where none is refused.
                one = tl.exp((_value(cut) - top) * inv_temperature)
                target = top_p * (more + tl.where(ties >= 0, ties * one, level))
                edge, above, met = _largest_with(
                    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks,
                    arrived, met, parts, top, inv_temperature, target, cut,
                    True, BLOCK, TOGETHER, BLOCK_P, MASKED,
                )  # fmt: skip
                one = tl.exp((_value(edge) - top) * inv_temperature)
                wanted = tl.maximum(tl.ceil((target - above) / tl.where(one > 0, one, 1.0)), 1.0)
                same = (edge == cut) & (ties >= 0)
                ties = tl.where(same, tl.minimum(ties, wanted), wanted)
                cut = edge
            if ties >= 0:
                limit = _end_of_ties(
                    logits, bitmask, row, vocabulary, words, masked, first, end, scratch, blocks,
                    arrived, met + 1, parts, cut, ties, BLOCK, TOGETHER, BLOCK_P, MASKED,
                )  # fmt: skip
        if TOGETHER:
            last = tl.atomic_add(arrived + 1, 1) == parts - 1
    if last:  # nobody waits any more
        tl.store(arrived, 0)
        tl.store(arrived + 1, 0)
    if part == 0:
        tl.store(cuts + row, cut)
        tl.store(limits + row, limit)
        tl.store(floors + row, floor)


@triton.jit
def draw_kernel(
    logits,
    bitmask,
    need,
    inv_temperatures,
    seeds,
    positions,
    cuts,
    limits,
    floors,
    scores,
    ids,
    broken,
    vocabulary,
    words,
    span,
    CUT: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The best kept token among `span` of a row, and whether one of its logits is NaN or inf."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    take_turn(PDL)
    masked = tl.load(need + row).to(tl.int32)
    inv_temperature = tl.load(inv_temperatures + row)
    low, high = _stream(tl.load(seeds + row), tl.load(positions + row))
    if CUT:
        cut, limit = tl.load(cuts + row), tl.load(limits + row)
        floor = tl.load(floors + row)
    top = tl.full([BLOCK], float("-inf"), tl.float32)
    at = tl.full([BLOCK], INT32_MAX, tl.int32)
    bad = tl.zeros([BLOCK], tl.int32)
    for first in range(0, span, BLOCK):
        inner = first + tl.arange(0, BLOCK)
        i = part * span + inner
        i = tl.where(inner < span, i, vocabulary)
        x = _masked(logits, bitmask, row, i, vocabulary, words, masked, MASKED)
        bad |= ((x != x) | (x == float("inf"))).to(tl.int32)
        score = x
        if inv_temperature > 0:
            score = x * inv_temperature - _log_exponential(i, low, high)
        keep = (x == x) & (x > -float("inf"))
        if CUT:
            order = _order(x)
            keep &= (x >= floor) & ((order > cut) | ((order == cut) & (i < limit)))
        take = keep & (score > top)
        top = tl.where(take, score, top)
        at = tl.where(take, i, at)
    best = tl.max(top, axis=0)
    slot = row * tl.num_programs(1) + part
    tl.store(scores + slot, best)
    tl.store(ids + slot, tl.min(tl.where(top == best, at, INT32_MAX), axis=0))
    tl.store(broken + slot, tl.max(bad, axis=0))


@triton.jit(do_not_specialize=["parts"])
def choose_kernel(scores, ids, broken, out, bad, parts, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The best of a row's parts; a row with a broken logit or nothing kept is bad, its id 0."""
    row = tl.program_id(0).to(tl.int64)
    take_turn(PDL)
    i = tl.arange(0, BLOCK)
    live = i < parts
    score = tl.load(scores + row * parts + i, mask=live, other=float("-inf"))
    at = tl.load(ids + row * parts + i, mask=live, other=INT32_MAX)
    best = tl.max(score, axis=0)
    sick = tl.max(tl.load(broken + row * parts + i, mask=live, other=0), axis=0) > 0
    sick = sick | (best == -float("inf"))
    found = tl.min(tl.where(score == best, at, INT32_MAX), axis=0)
    tl.store(out + row, tl.where(sick, 0, found))
    tl.store(bad + row, sick.to(tl.int8))
