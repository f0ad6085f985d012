"""Kernels that treat each row of a matrix by itself: norms, activations, look-ups, reductions.

Invariant: the result of a row is computed in an order that its width alone decides. Every kernel
takes `PDL`: with it, the next kernel of the stream may start before this one ends, and this one
waits for the one before just ahead of its first read of an activation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.device_functions import INT32_MAX, take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: copy_slots_kernel: operands of a launch
# size: joined_norms_kernel: operands of a launch
# size: resolve_ids_kernel: operands of a launch
# size: rms_norm_kernel: operands of a launch


@triton.jit
def rms_norm_kernel(
    x, residual, weight, out, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """One row a program. ADD: `residual += x` first, and the norm is that of the sum."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BLOCK)
    live = i < width
    w = tl.load(weight + i, mask=live, other=0.0).to(tl.float32)
    take_turn(PDL)
    y = tl.load(x + row * width + i, mask=live, other=0.0)
    if ADD:
        before = tl.load(residual + row * width + i, mask=live, other=0.0)
        # Rounded once: the stream that later layers read is the one that is normed here.
        y = (before.to(tl.float32) + y.to(tl.float32)).to(residual.dtype.element_ty)
        tl.store(residual + row * width + i, y, mask=live)
    y = y.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(y * y, axis=0) / width + eps)
    tl.store(out + row * width + i, (y * scale * w).to(out.dtype.element_ty), mask=live)


@triton.jit
def joined_norms_kernel(
    ids, table, norm, index, states, state_norm, out, kept, width, eps, BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A token and one of its two inputs a program, see `Ops.joined_norms`: out [t, 2 * width] and
    kept [t, width]."""
    token, second = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    live = i < width
    if second:
        w = tl.load(state_norm + i, mask=live, other=0.0).to(tl.float32)
    else:
        w = tl.load(norm + i, mask=live, other=0.0).to(tl.float32)
    take_turn(PDL)
    if second:
        place = tl.load(index + token).to(tl.int64) * width + i
        state = tl.load(states + place, mask=live, other=0.0).to(kept.dtype.element_ty)
        tl.store(kept + token * width + i, state, mask=live)
        y = state.to(tl.float32)
    else:
        place = tl.load(ids + token).to(tl.int64) * width + i
        y = tl.load(table + place, mask=live, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(y * y, axis=0) / width + eps)
    target = out + (2 * token + second) * width + i
    tl.store(target, (y * scale * w).to(out.dtype.element_ty), mask=live)


@triton.jit
def silu_mul_kernel(gate_up, out, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out [t, width] = silu(gate) * up; gate_up [t, 2 * width]."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = i < width
    take_turn(PDL)
    gate = tl.load(gate_up + row * 2 * width + i, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + i, mask=live, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + i, y.to(out.dtype.element_ty), mask=live)


@triton.jit
def add_kernel(x, y, out, count, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out = x + y over `count` elements."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = i < count
    take_turn(PDL)
    total = tl.load(x + i, mask=live).to(tl.float32) + tl.load(y + i, mask=live).to(tl.float32)
    tl.store(out + i, total.to(out.dtype.element_ty), mask=live)


@triton.jit
def gather_rows_kernel(x, index, out, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out[row] = x[index[row]], converted to out's dtype; the embedding is this over its table."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = i < width
    take_turn(PDL)
    source = tl.load(index + row).to(tl.int64)
    value = tl.load(x + source * width + i, mask=live)
    tl.store(out + row * width + i, value.to(out.dtype.element_ty), mask=live)


@triton.jit
def scatter_rows_kernel(x, index, out, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out[index[row]] = x[row], converted to out's dtype."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = i < width
    take_turn(PDL)
    target = tl.load(index + row).to(tl.int64)
    value = tl.load(x + row * width + i, mask=live)
    tl.store(out + target * width + i, value.to(out.dtype.element_ty), mask=live)


@triton.jit
def resolve_ids_kernel(
    ids,
    positions,
    rows,
    extend_start,
    token_table,
    out,
    tokens,
    batch,
    context,
    BLOCK_T: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PDL: tl.constexpr,
):
    """Ids of -1 from the token table. A token's row is how many rows end at or before it."""
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    live = t < tokens
    take_turn(PDL)
    row = tl.zeros([BLOCK_T], dtype=tl.int32)
    for first in range(0, batch, BLOCK_B):
        b = first + tl.arange(0, BLOCK_B)
        ends = tl.load(extend_start + 1 + b, mask=b < batch, other=INT32_MAX)
        row += tl.sum((ends[None, :] <= t[:, None]).to(tl.int32), axis=1)
    known = tl.load(ids + t, mask=live, other=0)
    ask = live & (known < 0) & (row < batch)
    table_row = tl.load(rows + row, mask=ask, other=0).to(tl.int64)
    place = tl.load(positions + t, mask=ask, other=0)
    found = tl.load(token_table + table_row * context + place, mask=ask, other=0)
    tl.store(out + t, tl.where(known < 0, found, known), mask=live)


@triton.jit
def apply_bitmask_kernel(
    logits, bitmask, need, vocabulary, words, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """-inf where a bit is clear, in rows that need it."""
    row = tl.program_id(0).to(tl.int64)
    take_turn(PDL)
    if tl.load(need + row) != 0:
        i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        live = i < vocabulary
        word = tl.load(bitmask + row * words + i // 32, mask=live, other=0)
        refused = ((word >> (i % 32)) & 1) == 0
        tl.store(logits + row * vocabulary + i, float("-inf"), mask=live & refused)


@triton.jit
def argmax_part_kernel(
    logits, best, where, vocabulary, span, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """The largest of `span` logits of a row and its first index: best, where [n, programs]."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    take_turn(PDL)
    top = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    at = tl.full([BLOCK], INT32_MAX, dtype=tl.int32)
    for first in range(0, span, BLOCK):
        i = part * span + first + tl.arange(0, BLOCK)
        live = (i < vocabulary) & (first + tl.arange(0, BLOCK) < span)
        x = tl.load(logits + row * vocabulary + i, mask=live, other=float("-inf")).to(tl.float32)
        # A row of -inf has its first place as answer, so equal values count where none is held.
        take = live & ((x > top) | ((x == top) & (i < at)))
        top = tl.where(take, x, top)
        at = tl.where(take, i, at)
    largest = tl.max(top, axis=0)
    first_place = tl.min(tl.where(top == largest, at, INT32_MAX), axis=0)
    slot = row * tl.num_programs(1) + part
    tl.store(best + slot, largest)
    tl.store(where + slot, first_place)


@triton.jit
def argmax_join_kernel(best, where, out, parts, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """The largest of a row's parts, the lowest index among equals."""
    row = tl.program_id(0).to(tl.int64)
    take_turn(PDL)
    i = tl.arange(0, BLOCK)
    x = tl.load(best + row * parts + i, mask=i < parts, other=float("-inf"))
    at = tl.load(where + row * parts + i, mask=i < parts, other=INT32_MAX)
    tl.store(out + row, tl.min(tl.where(x == tl.max(x, axis=0), at, INT32_MAX), axis=0))


@triton.jit
def _take_largest(x, i, live, values, indices, K: tl.constexpr):
    """Store the K largest of x and their i, largest first, the lowest i among equals."""
    for j in range(K):
        largest = tl.max(tl.where(live, x, float("-inf")), axis=0)
        at = tl.min(tl.where(live & (x == largest), i, INT32_MAX), axis=0)
        tl.store(values + j, largest)
        tl.store(indices + j, at)
        live = live & (i != at)


@triton.jit
def top_part_kernel(
    logits, values, indices, vocabulary, K: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    """The K largest of BLOCK logits of a row: values, indices [n, programs, K]. Places beyond the
    row, where it has fewer, are -inf and INT32_MAX."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    take_turn(PDL)
    i = part * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * vocabulary + i, mask=i < vocabulary, other=float("-inf"))
    x = x.to(tl.float32)
    x = tl.where(x == x, x, float("-inf"))  # indices are valid, whatever the model gave
    slot = (row * tl.num_programs(1) + part) * K
    _take_largest(x, i, i < vocabulary, values + slot, indices + slot, K)


@triton.jit
def top_join_kernel(
    values,
    indices,
    out_values,
    out_indices,
    found,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """The K largest of a row's `found` in parts, as `_take_largest` orders them."""
    row = tl.program_id(0).to(tl.int64)
    take_turn(PDL)
    i = tl.arange(0, BLOCK)
    x = tl.load(values + row * found + i, mask=i < found, other=float("-inf"))
    at = tl.load(indices + row * found + i, mask=i < found, other=INT32_MAX)
    slot = row * K
    _take_largest(x, at, at < INT32_MAX, out_values + slot, out_indices + slot, K)


@triton.jit
def logsumexp_kernel(logits, out, vocabulary, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """log(sum(exp(row))) by a running maximum; -inf for a row of -inf."""
    row = tl.program_id(0).to(tl.int64)
    take_turn(PDL)
    top = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, vocabulary, BLOCK):
        i = first + tl.arange(0, BLOCK)
        x = tl.load(logits + row * vocabulary + i, mask=i < vocabulary, other=float("-inf"))
        x = x.to(tl.float32)
        new = tl.maximum(top, x)
        base = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(top - base) + tl.exp(x - base)
        top = new
    largest = tl.max(top, axis=0)
    base = tl.where(largest == float("-inf"), 0.0, largest)
    whole = tl.sum(total * tl.exp(top - base), axis=0)
    # A sum that is not zero is at least 1, the term of the largest.
    value = tl.where(whole > 0, base + tl.log(tl.maximum(whole, 1.0)), float("-inf"))
    tl.store(out + row, tl.where(whole == whole, value, whole))


@triton.jit
def copy_slots_kernel(
    pool,
    source,
    target,
    count,
    plane,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PDL: tl.constexpr,
):
    """Copy slots in one of the pool's planes; a program owns some columns of all of them."""
    base = pool + tl.program_id(0).to(tl.int64) * plane
    column = tl.program_id(1) * BLOCK_W + tl.arange(0, BLOCK_W)
    n = tl.arange(0, BLOCK_N)
    take_turn(PDL)
    s = tl.load(source + n, mask=n < count, other=0).to(tl.int64)
    d = tl.load(target + n, mask=n < count, other=0).to(tl.int64)
    live = (n < count)[:, None] & (column < width)[None, :]
    value = tl.load(base + s[:, None] * width + column[None, :], mask=live)
    tl.debug_barrier()  # every source is read before a target is written
    tl.store(base + d[:, None] * width + column[None, :], value, mask=live)
