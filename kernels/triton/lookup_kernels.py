"""Looking up on a device: a program has a row to itself, and reads its ids from a cache.

Invariant: what is written for a row depends on that row alone. Places are compared with the row's
end only where two of their last three ids are the same, which every match has.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.device_functions import take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: best_place: operands of a launch
# size: find_matches_kernel: operands of a launch
# size: plant_chains_kernel: operands of a launch


@triton.jit
def same_before(own, end, last, inside, j):
    """Whether the id j + 1 before each place is the row's, j ids before its last one."""
    wanted = tl.load(own + last - j, mask=last >= j, other=-2)
    there = tl.load(own + end - 1 - j, mask=inside & (end > j), other=-1)
    return there == wanted


@triton.jit
def best_place(
    own, last,
    SEARCHED: tl.constexpr, LEAST: tl.constexpr, MATCH: tl.constexpr, LONG: tl.constexpr,
    CHANGED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How well the best place of a row matches and where that is, in the upper and lower half of an
    int64; see `LookupOps`."""
    best = last.to(tl.int64) * 0
    for start in range(tl.maximum(last - SEARCHED, 0), last, BLOCK):
        end = start + 1 + tl.arange(0, BLOCK)
        inside = end <= last
        near = tl.zeros([BLOCK], tl.int32)
        for j in tl.static_range(3):
            near += same_before(own, end, last, inside, j).to(tl.int32)
        if tl.max(near, axis=0) > 1:
            misses = tl.zeros([BLOCK], tl.int32)
            run = tl.zeros([BLOCK], tl.int32)
            more = tl.zeros([BLOCK], tl.int32)
            for j in tl.static_range(MATCH + LONG):
                same = same_before(own, end, last, inside, j)
                misses += tl.where(same, 0, 1)
                run += (misses == 0).to(tl.int32)
                more += ((misses == 1) & same).to(tl.int32)
            score = tl.minimum(run, MATCH) + tl.where(more >= LONG, CHANGED, 0)
            number = (score.to(tl.int64) << 32) | end.to(tl.int64)
            number = tl.where(inside & (score >= LEAST), number, 0)
            best = tl.maximum(best, tl.max(number, axis=0))
    return best


@triton.jit
def kept_of_chain(first, n, nodes, node_stride, NODES_PAD: tl.constexpr):
    """Candidates of a chain that were sampled, from the first one on."""
    i = tl.arange(0, NODES_PAD)
    place = nodes + first + 1 + i
    token = tl.load(place, mask=i < n, other=-1)
    parent = tl.load(place + node_stride, mask=i < n, other=-2)
    sampled = tl.load(place + 2 * node_stride - 1, mask=i < n, other=-1)
    wrong = (token != sampled) | (parent != i - 1)
    return tl.min(tl.where(wrong, i, NODES_PAD), axis=0)


@triton.jit
def find_matches_kernel(
    firsts, rows, seq_lens, tree_lens, sample_positions, nodes, known_tokens, known_lengths,
    match_lengths, match_ends, matched, node_stride, tokens_stride,
    NODES_PAD: tl.constexpr, SEARCHED: tl.constexpr, LEAST: tl.constexpr,
    MATCH: tl.constexpr, LONG: tl.constexpr, CHANGED: tl.constexpr, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """See `LookupOps.find_matches`."""
    b = tl.program_id(0)
    take_turn(PDL)
    row = tl.load(rows + b).to(tl.int64)
    first = tl.load(firsts + b)
    last = tl.load(seq_lens + b)
    if first >= 0:
        kept = kept_of_chain(first, tl.load(tree_lens + b), nodes, node_stride, NODES_PAD)
        last = tl.load(sample_positions + first).to(tl.int32) + kept
        tl.store(known_lengths + row, last)
    last = tl.minimum(last, tokens_stride - 1)
    own = known_tokens + row * tokens_stride
    best = best_place(own, last, SEARCHED, LEAST, MATCH, LONG, CHANGED, BLOCK)
    tl.store(match_lengths + row, last + 1)
    tl.store(match_ends + row, best.to(tl.int32))
    tl.store(matched + b, (best >> 32).to(tl.int32))


@triton.jit
def plant_chains_kernel(
    last_known, known_slots, known_tokens, known_lengths, match_lengths, match_ends,
    firsts, rows, seq_lens, extend_start, tree_lens, tree_offsets, tree_words, input_ids, out_slots,
    previous, positions, sample_places, sample_positions, nodes,
    slots_stride, tokens_stride, node_stride,
    NODES_PAD: tl.constexpr, WORDS_PAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """See `LookupOps.plant_chains`."""
    b = tl.program_id(0)
    take_turn(PDL)
    first = tl.load(firsts + b)
    if first >= 0:
        row = tl.load(rows + b).to(tl.int64)
        n = tl.load(tree_lens + b)
        last = tl.load(last_known + b)
        if last < 0:
            last = tl.load(known_lengths + row)
        end = tl.load(match_ends + row)
        found = (end > 0) & (tl.load(match_lengths + row) == last + 1)
        i, w = tl.arange(0, NODES_PAD), tl.arange(0, WORDS_PAD)
        live = i < n
        own, tokens = known_slots + row * slots_stride, known_tokens + row * tokens_stride
        there = tl.where(found, end + i % tl.maximum(last + 1 - end, 1), 0)
        token = tl.where(found, tl.load(tokens + there, mask=live, other=0), 0)
        parent = tl.where(found, i - 1, -2)
        depth = tl.where(found, i, 0)
        # Of word w a candidate sees the lowest bits, those of itself and all ahead of it.
        bits = tl.minimum(tl.maximum(i[:, None] + 1 - 64 * w[None, :], 0), 64)
        one = (bits * 0 + 1).to(tl.int64)
        ahead = tl.where(bits > 63, -one, (one << tl.minimum(bits, 63).to(tl.int64)) - 1)
        alone = one << (i % 64)[:, None].to(tl.int64)
        alone = tl.where((i // 64)[:, None] == w[None, :], alone, one * 0)
        words = (n + 63) // 64
        tl.store(
            tree_words + (tl.load(tree_offsets + b) + i * words)[:, None] + w[None, :],
            tl.where(found, ahead, alone),
            mask=live[:, None] & (w < words)[None, :],
        )
        tl.store(nodes + first + 1 + i, token, mask=live)
        tl.store(nodes + node_stride + first + 1 + i, parent, mask=live)
        at = tl.load(extend_start + b + 1) - n - 1
        tl.store(seq_lens + b, last + 1 + n)
        tl.store(positions + at, last.to(tl.int64))
        tl.store(out_slots + at, tl.load(own + last))
        tl.store(previous + at, tl.load(own + tl.maximum(last - 1, 0)))
        tl.store(sample_positions + first, (last + 1).to(tl.int64))
        tl.store(sample_places + first, row * tokens_stride + last + 1)
        position = (last + 1 + depth).to(tl.int64)
        at += 1 + i
        tl.store(input_ids + at, token, mask=live)
        tl.store(positions + at, position, mask=live)
        tl.store(out_slots + at, tl.load(own + last + 1 + i, mask=live, other=0), mask=live)
        before = tl.load(own + last + 1 + tl.maximum(parent, -1), mask=live, other=0)
        tl.store(previous + at, before, mask=live)
        tl.store(sample_positions + first + 1 + i, position + 1, mask=live)
        tl.store(sample_places + first + 1 + i, row * tokens_stride + position + 1, mask=live)
