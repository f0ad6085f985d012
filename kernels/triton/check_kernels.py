"""What lies between a search and the step that checks it: the tree made of what was found, and what
of it is kept. A program has a row to itself.

Invariant: equal scores are taken in the order in which they were found, as a stable sort does.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.beam_kernels import HEADER, NOTHING, packed
from branchline.kernels.triton.device_functions import take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: beam_tree_kernel: operands of a launch
# size: keep_guesses_kernel: operands of a launch
# size: plant: operands of a launch

NOBODY = tl.constexpr(-2)
NEGATIVE_INFINITY = tl.constexpr(-0x800000)  # bits of the float32


@triton.jit
def rank_found(
    scores, places, order, count, n,
    COUNT_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many of the first `count` scores (their bits) are no -inf; of the n best, `order` [n]
    tells which they are and `places` [count] where each is, -1 = nowhere."""
    c = tl.arange(0, COUNT_PAD)
    score = tl.load(scores + c, mask=c < count, other=NEGATIVE_INFINITY)
    score = score.to(tl.float32, bitcast=True)
    number = tl.where(score > float("-inf"), packed(score, c), NOTHING)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        one = tl.load(scores + i, mask=i < count, other=NEGATIVE_INFINITY)
        one = one.to(tl.float32, bitcast=True)
        mine = tl.where(one > float("-inf"), packed(one, i), NOTHING)
        rank = tl.sum((number[None, :] > mine[:, None]).to(tl.int32), axis=1)
        there = (mine != NOTHING) & (rank < n)
        tl.store(places + i, tl.where(there, rank, -1), mask=i < count)
        tl.store(order + rank, i, mask=there)
    return tl.sum((number != NOTHING).to(tl.int32), axis=0)


@triton.jit
def plant(
    parents, parent, id_of, i, n, last, row, first, token, word, known_slots, tokens_stride,
    input_ids, out_slots, previous, positions, sample_places, sample_positions, tree_words,
    DEPTH: tl.constexpr, NODES_PAD: tl.constexpr, WORDS_PAD: tl.constexpr,
):  # fmt: skip
    """Write what a step reads of candidates i [NODES_PAD] of a row behind its position `last`."""
    live = i < n
    w = tl.arange(0, WORDS_PAD)
    bits = tl.zeros([NODES_PAD, WORDS_PAD], tl.int64)
    depth = i * 0 - 1
    above = tl.where(live, i, -1)
    for _ in range(DEPTH):
        there = above >= 0
        own = there[:, None] & ((above // 64)[:, None] == w[None, :])
        one = (above * 0 + 1).to(tl.int64) << (tl.maximum(above, 0) % 64).to(tl.int64)
        bits = tl.where(own, bits | one[:, None], bits)
        depth += there.to(tl.int32)
        above = tl.load(parents + tl.maximum(above, 0), mask=there, other=-1)
    position = (last + 1 + depth).to(tl.int64)
    words = (n + 63) // 64
    tl.store(
        tree_words + (word + i * words)[:, None] + w[None, :],
        bits,
        mask=live[:, None] & (w < words)[None, :],
    )
    at = token + 1 + i
    tl.store(input_ids + at, id_of, mask=live)
    tl.store(positions + at, position, mask=live)
    slot = tl.load(known_slots + last + 1 + i, mask=live, other=0)
    tl.store(out_slots + at, slot, mask=live)
    before = tl.load(known_slots + last + 1 + tl.maximum(parent, -1), mask=live, other=0)
    tl.store(previous + at, before, mask=live)
    at = first + 1 + i
    tl.store(sample_positions + at, position + 1, mask=live)
    tl.store(sample_places + at, row * tokens_stride + position + 1, mask=live)


@triton.jit
def beam_tree_kernel(
    inputs, lengths, found, places, order, known_slots,
    firsts, rows, seq_lens, extend_start, tree_lens, tree_offsets, tree_words, input_ids, out_slots,
    previous, positions, sample_places, sample_positions, nodes,
    plane, found_stride, input_stride, slots_stride, tokens_stride, node_stride,
    W: tl.constexpr, DEPTH: tl.constexpr, LEVELS: tl.constexpr, LEVELS_PAD: tl.constexpr,
    COUNT_PAD: tl.constexpr, NODES_PAD: tl.constexpr, WORDS_PAD: tl.constexpr,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See `BeamOps.beam_tree`. places [R, plane] and order [R, NODES_PAD] are scratch."""
    r = tl.program_id(0)
    given = inputs + r.to(tl.int64) * input_stride
    take_turn(PDL)
    at = tl.load(given + 4)
    levels = tl.load(given + 3)
    first = -1
    if at >= 0:
        first = tl.load(firsts + at)
    if first >= 0:
        row = tl.load(rows + at).to(tl.int64)
        n = tl.load(tree_lens + at)
        level = tl.arange(0, LEVELS_PAD)
        known = (level > 0) & (level < LEVELS)
        pending = tl.load(given + HEADER + level, mask=known, other=-1)
        last = tl.load(lengths + r) + tl.sum((pending >= 0).to(tl.int32), axis=0)
        own = known_slots + row * slots_stride
        token = tl.load(extend_start + at + 1) - n - 1
        here = found + r.to(tl.int64) * found_stride
        count = tl.minimum(W + (levels - 1) * W * W, found_stride)
        order += r * NODES_PAD
        places += r.to(tl.int64) * found_stride
        there = rank_found(here + 2 * plane, places, order, count, n, COUNT_PAD, BLOCK)
        tl.debug_barrier()  # all places are known before one is read
        i = tl.arange(0, NODES_PAD)
        alive = i < tl.minimum(there, n)
        chosen = tl.load(order + i, mask=alive, other=0)
        id_of = tl.load(here + chosen, mask=alive, other=0)
        before = tl.load(here + plane + chosen, mask=alive, other=-1)
        parent = tl.load(places + tl.maximum(before, 0), mask=alive & (before >= 0), other=-1)
        parent = tl.where(alive, parent, NOBODY)
        parents = nodes + node_stride + first + 1
        tl.store(nodes + first + 1 + i, id_of, mask=i < n)
        tl.store(parents + i, parent, mask=i < n)
        tl.debug_barrier()  # all parents are known before paths are followed
        tl.store(seq_lens + at, last + 1 + n)
        tl.store(positions + token, last.to(tl.int64))
        tl.store(out_slots + token, tl.load(own + last))
        tl.store(previous + token, tl.load(own + tl.maximum(last - 1, 0)))
        tl.store(sample_positions + first, (last + 1).to(tl.int64))
        tl.store(sample_places + first, row * tokens_stride + last + 1)
        plant(
            parents, parent, id_of, i, n, last, row, first, token, tl.load(tree_offsets + at), own,
            tokens_stride, input_ids, out_slots, previous, positions, sample_places,
            sample_positions, tree_words, DEPTH, NODES_PAD, WORDS_PAD,
        )  # fmt: skip


@triton.jit
def keep_guesses_kernel(
    firsts, rows, tree_lens, sample_positions, nodes, known_slots, known_tokens, known_lengths,
    moves, node_stride, slots_stride, tokens_stride, move_stride,
    DEPTH: tl.constexpr, NODES_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See `BeamOps.keep_guesses`; moves [2, b, DEPTH] of its plane size `move_stride`."""
    b = tl.program_id(0)
    take_turn(PDL)
    first = tl.load(firsts + b)
    kept = 0
    live = first >= 0
    at = tl.maximum(first, 0)
    n = tl.where(live, tl.load(tree_lens + b), 0)
    row = tl.load(rows + b).to(tl.int64)
    base = tl.load(sample_positions + at)
    slots, tokens = known_slots + row * slots_stride, known_tokens + row * tokens_stride
    i = tl.arange(0, NODES_PAD)
    ids = tl.load(nodes + at + 1 + i, mask=i < n, other=-1)
    parents = tl.load(nodes + node_stride + at + 1 + i, mask=i < n, other=-2)
    sampled = nodes + 2 * node_stride
    following = tl.load(sampled + at + 1 + i, mask=i < n, other=-1)
    token = tl.load(sampled + at)
    node = first * 0 - 1
    for level in range(DEPTH + 1):
        if live & (token >= 0):
            tl.store(tokens + base + kept, token)
        right = (parents == node) & (ids == token) & (i < n)
        child = tl.min(tl.where(right, i, NODES_PAD), axis=0)
        live = live & (child < NODES_PAD) & (level < DEPTH)
        if level < DEPTH:
            source = tl.load(slots + tl.where(live, base + child, 0))
            target = tl.load(slots + tl.where(live, base + kept, 0))
            tl.store(moves + b * DEPTH + level, tl.where(live, source, 0))
            tl.store(moves + move_stride + b * DEPTH + level, tl.where(live, target, 0))
        token = tl.sum(tl.where(i == child, following, 0), axis=0)
        node = tl.where(live, child, node)
        kept += live.to(tl.int32)
    if first >= 0:
        tl.store(known_lengths + row, (base + kept).to(tl.int32))
