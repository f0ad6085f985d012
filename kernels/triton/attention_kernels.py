"""Attention over the paged pool: one kernel for rows of one token, one for rows of any number.

Invariant: scores, weights and sums are float32 (the products take the pool's elements), every key
of a row is read through the slot table, and blocks of keys are visited in order, so the result of
a token depends on its row alone. `extend_kernel` visits them whole, in blocks that start at key 0
whatever the step; `decode_kernel` cuts the row into SPLITS parts that it joins in order.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from branchline.kernels.triton.device_functions import dot, take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: attend_block: operands of a launch
# size: attend_keys: operands of a launch
# size: decode_kernel: operands of a launch
# size: extend_kernel: operands of a launch
# size: join_parts: operands of a launch
# size: join_tile: operands of a launch
# size: load_queries: operands of a launch


@triton.jit
def load_queries(
    q, token, head, g, live, scale_log2, k_pool, hkv,
    GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """A tile of queries, scaled: (values [M, BLOCK_D], their places, which of them there are).

    token: one or [M]; g, live [M]: which query head of the KV head, and whether there is one.
    """
    i = tl.arange(0, BLOCK_D)
    place = ((token * hkv + head) * GROUP + g)[:, None] * D + i[None, :]
    inside = (live & (g < GROUP))[:, None] & (i < D)[None, :]
    query = tl.load(q + place, mask=inside, other=0.0).to(tl.float32) * scale_log2
    return query.to(k_pool.dtype.element_ty), place, inside


@triton.jit
def attend_block(
    q,
    top,
    total,
    acc,
    k_pool,
    v_pool,
    slots,
    key_live,
    visible,
    head_offset,
    slot_stride,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Add one block of keys to the running softmax of a tile of queries.

    q [M, BLOCK_D] is scaled already, by log2(e) too; slots, key_live [N]; visible [M, N].
    """
    i = tl.arange(0, BLOCK_D)
    inside = i < D
    place = slots.to(tl.int64) * slot_stride + head_offset
    keys = tl.load(
        k_pool + place[None, :] + i[:, None],
        mask=key_live[None, :] & inside[:, None],
        other=0.0,
    )
    scores = dot(q, keys, None, WIDE)
    scores = tl.where(visible, scores, float("-inf"))
    new = tl.maximum(top, tl.max(scores, axis=1))
    base = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, axis=1)
    values = tl.load(
        v_pool + place[:, None] + i[None, :],
        mask=key_live[:, None] & inside[None, :],
        other=0.0,
    )
    acc = acc * shrink[:, None]
    acc = dot(weights.to(values.dtype), values, acc, WIDE)
    return new, total, acc


@triton.jit
def log_weight(top, total):
    """Base-2 logarithm of a running softmax's sum of weights; -inf where it has seen no keys."""
    return tl.where(total > 0, top + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))


@triton.jit
def attend_keys(
    query, k_pool, v_pool, table, start, end, head, hkv,
    D: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The running softmax of a tile whose queries all see the keys from `start` to `end`.

    With WHOLE these are whole blocks. Returns (maximum [M], sum of the weights [M], weighted sum
    of the values [M, BLOCK_D]); without keys these are -inf, 0 and 0.
    """
    M: tl.constexpr = query.shape[0]
    BLOCK_D: tl.constexpr = query.shape[1]
    m, n = tl.arange(0, M), tl.arange(0, BLOCK_N)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for first in range(start, end, BLOCK_N):
        key = first + n
        live = n >= 0 if WHOLE else key < end
        slots = tl.load(table + key) if WHOLE else tl.load(table + key, mask=live, other=0)
        visible = live[None, :] & (m >= 0)[:, None]
        top, total, acc = attend_block(
            query, top, total, acc, k_pool, v_pool, slots, live, visible,
            head * D, hkv * D, D, BLOCK_D, WIDE,
        )  # fmt: skip
    return top, total, acc


@triton.jit
def decode_kernel(
    q, k_pool, v_pool, rows, slot_table, seq_lens, extend_lens, extend_start, trunk_lens,
    part_out, part_lse, arrived, out, scale_log2, context, hkv,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, TRUNK_BLOCK: tl.constexpr, TRUNK_ROWS: tl.constexpr,
    TRUNK_PARTS: tl.constexpr, SPLITS: tl.constexpr, JOIN_G: tl.constexpr, JOIN_S: tl.constexpr,
    AT_ONCE: tl.constexpr, EARLY: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Rows of at most one token. A program takes one row, one KV head and one of SPLITS parts.

    Where TRUNK_PARTS is not 0, the first keys of a row, as many as `trunk_lens` says for its
    TRUNK_ROWS neighbours, have been seen to by the kernel before (`trunk_kernel`). The program that
    arrives last at `arrived` [b * hkv] joins all parts and sets it back to 0. Float32 scratch:
    part_out and part_lse [b, hkv, PARTS, GROUP, D], with a trunk part_lse without the D. EARLY:
    q comes of `write_heads`.
    """
    row, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    PARTS: tl.constexpr = TRUNK_PARTS + SPLITS
    if not EARLY:
        take_turn(PDL)
    elif PDL:
        gdc_launch_dependents()
    extend = tl.load(extend_lens + row)
    length = tl.where(extend > 0, tl.load(seq_lens + row), 0)
    trunk = length * 0
    used_trunk = trunk
    if TRUNK_PARTS > 0:
        trunk = tl.load(trunk_lens + row // TRUNK_ROWS)
        trunk = tl.where(length > trunk, trunk, 0)
        used_trunk = parts_of(trunk, TRUNK_PARTS, TRUNK_BLOCK)[1]
    token = tl.load(extend_start + row).to(tl.int64)
    table = slot_table + tl.load(rows + row).to(tl.int64) * context
    g, i = tl.arange(0, GROUP_PAD), tl.arange(0, BLOCK_D)
    part, used_own = parts_of(length - trunk, SPLITS, BLOCK_N)
    start = trunk + split * part
    end = tl.minimum(start + part, length)
    if PDL and EARLY:
        gdc_wait()
    # Compared after it is spread: the interpreter spreads numbers, not truth values.
    query, q_place, q_live = load_queries(
        q, token, head, g, g * 0 + length > 0, scale_log2, k_pool, hkv, GROUP, D, BLOCK_D
    )
    top, total, acc = attend_keys(
        query, k_pool, v_pool, table, start, end, head, hkv, D, BLOCK_N, False, WIDE
    )
    value = acc / tl.where(total > 0, total, 1.0)[:, None]
    if PARTS == 1 or (SPLITS == 1 and used_trunk == 0):
        tl.store(out + q_place, value.to(out.dtype.element_ty), mask=q_live)
    else:
        one = (row * hkv + head).to(tl.int64)
        mine = (one * PARTS + TRUNK_PARTS + split) * GROUP + g
        place = mine[:, None] * D + i[None, :]
        lse = log_weight(top, total)
        tl.store(part_out + place, value, mask=q_live)
        if TRUNK_PARTS:
            tl.store(part_lse + mine, lse, mask=g < GROUP)
        else:
            tl.store(part_lse + place, tl.broadcast_to(lse[:, None], value.shape), mask=q_live)
        tl.debug_barrier()  # the whole program has written before it says so
        before = SPLITS - 1
        if SPLITS > 1:
            before = tl.atomic_add(arrived + one, 1)
        if before == SPLITS - 1:
            if SPLITS > 1:
                tl.store(arrived + one, 0)
            if TRUNK_PARTS:
                join_parts(
                    part_out, part_lse, out, token, one, head, hkv, used_trunk + used_own,
                    used_trunk, GROUP, JOIN_G, D, BLOCK_D, TRUNK_PARTS, PARTS, JOIN_S,
                )  # fmt: skip
            else:
                joined = join_tile(
                    part_out, part_lse, one * PARTS, used_own, GROUP, JOIN_G, D, BLOCK_D, AT_ONCE
                )
                target = (token * hkv + head) * GROUP + tl.arange(0, JOIN_G)[:, None]
                there = (tl.arange(0, JOIN_G) < GROUP)[:, None] & (i < D)[None, :]
                there = there & (target * 0 + length > 0)
                joined = joined.to(out.dtype.element_ty)
                tl.store(out + target * D + tl.arange(0, BLOCK_D)[None, :], joined, mask=there)


@triton.jit
def parts_of(length, parts, BLOCK_N: tl.constexpr):
    """(keys of a part, parts in use) when `length` keys are cut into at most so many parts."""
    part = tl.cdiv(tl.cdiv(length, parts), BLOCK_N) * BLOCK_N
    return part, tl.cdiv(length, tl.maximum(part, 1))


@triton.jit
def join_some(top, total, acc, lse, value):
    """The running join of parts (top, total [M], acc [M, D]) with some more of them: lse [S, M] and
    value [S, M, D]."""
    new = tl.maximum(top, tl.max(lse, axis=0))
    base = tl.where(new == float("-inf"), 0.0, new)
    shrink, weight = tl.exp2(top - base), tl.exp2(lse - base[None, :])
    acc = acc * shrink[:, None] + tl.sum(value * weight[:, :, None], axis=0)
    return new, total * shrink + tl.sum(weight, axis=0), acc


@triton.jit
def join_parts(
    part_out, part_lse, out, token, one, head, hkv, used, used_first,
    GROUP: tl.constexpr, JOIN_G: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    FIRST: tl.constexpr, PARTS: tl.constexpr, JOIN_S: tl.constexpr,
):  # fmt: skip
    """Join the parts of one row and KV head, JOIN_S at a time, in order.

    There is room for PARTS; in use are the first `used_first`, and then, from FIRST on, the others
    of all `used`.
    """
    g, i, s = tl.arange(0, JOIN_G), tl.arange(0, BLOCK_D), tl.arange(0, JOIN_S)
    inside = (g < GROUP)[:, None] & (i < D)[None, :]
    top = tl.full([JOIN_G], float("-inf"), tl.float32)
    total = tl.zeros([JOIN_G], tl.float32)
    acc = tl.zeros([JOIN_G, BLOCK_D], tl.float32)
    for first in range(0, used, JOIN_S):
        live = (first + s < used)[:, None] & (g < GROUP)[None, :]
        part = first + s
        part = tl.where(part < used_first, part, part - used_first + FIRST)
        place = (one * PARTS + part)[:, None] * GROUP + g[None, :]
        # .cg: what other multiprocessors wrote is in L2, not in this one's L1.
        lse = tl.load(part_lse + place, mask=live, other=float("-inf"), cache_modifier=".cg")
        value = tl.load(
            part_out + place[:, :, None] * D + i[None, None, :],
            mask=live[:, :, None] & (i < D)[None, None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        top, total, acc = join_some(top, total, acc, lse, value)
    value = acc / tl.where(total > 0, total, 1.0)[:, None]
    target = out + (token * hkv * GROUP + head * GROUP + g[:, None]) * D + i[None, :]
    tl.store(target, value.to(out.dtype.element_ty), mask=inside & (g[:, None] * 0 + used > 0))


@triton.jit
def join_tile(
    part_out, part_lse, first_part, used,
    LINES: tl.constexpr, M: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The `used` parts of a tile of LINES queries from place `first_part` on, joined in order:
    [M, BLOCK_D].

    Each thread joins its own elements, so that none waits for another; that is why part_lse is as
    wide as part_out here. AT_ONCE parts are asked for at once.
    """
    m, i = tl.arange(0, M)[:, None], tl.arange(0, BLOCK_D)[None, :]
    top = tl.full([M, BLOCK_D], float("-inf"), tl.float32)
    total = tl.zeros([M, BLOCK_D], tl.float32)
    acc = tl.zeros([M, BLOCK_D], tl.float32)
    for first in range(0, used, AT_ONCE):
        for j in tl.static_range(AT_ONCE):
            part = first + j
            live = (m * 0 + part < used) & (m < LINES) & (i < D)
            place = ((first_part + part) * LINES + m) * D + i
            # .cg: what other multiprocessors wrote is in L2, not in this one's L1.
            lse = tl.load(part_lse + place, mask=live, other=float("-inf"), cache_modifier=".cg")
            value = tl.load(part_out + place, mask=live, other=0.0, cache_modifier=".cg")
            new = tl.maximum(top, lse)
            base = tl.where(new == float("-inf"), 0.0, new)
            shrink, weight = tl.exp2(top - base), tl.exp2(lse - base)
            total, acc, top = total * shrink + weight, acc * shrink + value * weight, new
    return acc / tl.where(total > 0, total, 1.0)


@triton.jit
def tree_visible(visible, words, x, key, extend, length, nodes):
    """`visible` [M, N], but where token x and the key are both among the last `nodes` as the mask
    at `words` says; see `AttentionMeta`."""
    node, other = x - (extend - nodes), key - (length - nodes)
    both = (node >= 0)[:, None] & (other >= 0)[None, :] & (key < length)[None, :]
    word = tl.load(
        words + node[:, None] * tl.cdiv(nodes, 64) + (other // 64)[None, :],
        mask=both & (x < extend)[:, None],
        other=0,
    )
    seen = ((word >> (other % 64).to(tl.int64)[None, :]) & 1) != 0
    return tl.where(both, seen, visible)


@triton.jit
def extend_kernel(
    q,
    k_pool,
    v_pool,
    rows,
    slot_table,
    seq_lens,
    extend_lens,
    extend_start,
    tree_lens,
    tree_offsets,
    tree_words,
    out,
    scale_log2,
    batch,
    context,
    hkv,
    GROUP: tl.constexpr,
    GROUP_PAD: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    TREE: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Rows of any number of tokens; a program takes TOKENS tokens of one row and one KV head.

    Its queries are a tile [TOKENS * GROUP_PAD, D]. Programs past the last tile do nothing, so the
    grid needs an upper bound of the tiles only.
    """
    tile = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest ones first
    head = tl.program_id(1)
    take_turn(PDL)
    b = tl.arange(0, BLOCK_B)
    tiles = tl.cdiv(tl.load(extend_lens + b, mask=b < batch, other=0), TOKENS)
    ends = tl.cumsum(tiles, axis=0)
    if tile < tl.max(ends, axis=0):
        row = tl.sum((ends <= tile).to(tl.int32), axis=0)
        tile_in_row = tile - tl.max(tl.where(ends <= tile, ends, 0), axis=0)
        extend, length = tl.load(extend_lens + row), tl.load(seq_lens + row)
        table = slot_table + tl.load(rows + row).to(tl.int64) * context
        m, n = tl.arange(0, TOKENS * GROUP_PAD), tl.arange(0, BLOCK_N)
        x, g = tile_in_row * TOKENS + m // GROUP_PAD, m % GROUP_PAD
        token = tl.load(extend_start + row).to(tl.int64) + x
        query, q_place, q_live = load_queries(
            q, token, head, g, x < extend, scale_log2, k_pool, hkv, GROUP, D, BLOCK_D
        )
        prefix = length - extend
        first_x = tile_in_row * TOKENS
        last_x = tl.minimum(first_x + TOKENS, extend) - 1
        plain_until = prefix + first_x + 1  # every token of the tile sees the keys before it
        end = prefix + last_x + 1
        if TREE:
            nodes = tl.load(tree_lens + row)
            words = tree_words + tl.load(tree_offsets + row)
            if last_x >= extend - nodes:
                plain_until = tl.minimum(plain_until, length - nodes)
                end = length
        plain_until = plain_until // BLOCK_N * BLOCK_N
        top, total, acc = attend_keys(
            query, k_pool, v_pool, table, 0, plain_until, head, hkv, D, BLOCK_N, True, WIDE
        )
        for first in range(plain_until, end, BLOCK_N):
            key = first + n
            slots = tl.load(table + key, mask=key < end, other=0)
            visible = (key[None, :] <= prefix + x[:, None]) & (key < end)[None, :]
            if TREE:
                visible = tree_visible(visible, words, x, key, extend, length, nodes)
            top, total, acc = attend_block(
                query, top, total, acc, k_pool, v_pool, slots, key < end, visible,
                head * D, hkv * D, D, BLOCK_D, WIDE,
            )  # fmt: skip
        value = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(out + q_place, value.to(out.dtype.element_ty), mask=q_live)
