"""Products of a few rows with a matrix, where reading the matrix is all the work.

Invariant: a program owns some columns of the output and sums over all of K by itself, in float32
and in a fixed order, so results are the same from run to run. The weights are constants: they are
asked for before the wait for the kernel before.

What may be compiled in:
  NORM   the product of rms_norm(x): the sums are of x * norm, the row's scale is applied to them.
  GATED  the matrix holds gate and up, the result is silu(gate) * up.
  ADD    the result is added to what is in `out`, the residual stream.
  SCALED with ADD: the sum goes times the weights of the norm behind it to `scaled`, and the squares
         of a program's columns of the sum are added up for each row: `squares` [t, programs].
  LATE   the next kernel starts when the one before this one has ended, with 2 when this one has
         made its sums. The products of a layer start one behind the other while attention runs, and
         all their weights at once are in its way; with LATE in the middle it is those up to there.
  NORMED x is what SCALED left, and the rows' scales come of its `squares`: with it, the product is
         that of the norm of the stream.
  HEAD   the outputs are heads of so many dimensions (0 = not): they are rotated, keys and values
         are written; see `head_functions`. With LATE what comes behind may read lengths and slots
         early.
  PARTS  of a layer with adapters (0 = none), one row: it gets B of its slot times `inner`, which
         `lora_shrink_kernel`, the kernel before, is making meanwhile. That one lets this one start
         when x is there; this one waits for it just ahead of the end.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from branchline.kernels.triton.device_functions import ask_for, dot, let_next_start, take_turn
from branchline.kernels.triton.head_functions import (
    angles_of,
    places_of,
    rotated_line,
    write_rotated,
)
from branchline.kernels.triton.lora_kernels import add_adapter

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: fixed_kernel: operands of a launch
# size: few_rows: operands of a launch
# size: gemv_kernel: operands of a launch
# size: _with_adapters: operands of a launch
# size: rows_kernel: operands of a launch
# size: _leave_scaled: operands of a launch
# size: skinny_kernel: operands of a launch


@triton.jit
def _part_of(base, PARTS: tl.constexpr, end0, end1):
    """The part that output `base` belongs to, of at most three."""
    part = base * 0
    if PARTS > 1:
        part += (base >= end0).to(tl.int32)
    if PARTS > 2:
        part += (base >= end1).to(tl.int32)
    return part


@triton.jit
def _parts_of_lines(lines, up_lines, k, n_live, width, GATED: tl.constexpr):
    """Columns k of lines of a matrix, and of those of `up`, the same ones where there are none."""
    live = n_live[:, None] & (k < width)[None, :]
    w = tl.load(lines + k[None, :], mask=live, other=0.0, eviction_policy="evict_first")
    if GATED:
        u = tl.load(up_lines + k[None, :], mask=live, other=0.0, eviction_policy="evict_first")
    else:
        u = w
    return w, u


@triton.jit
def _with_adapters(
    total, up, b, inner, slot, rank, up_rank, part, n, n_rows, slot_stride,
    GATED: tl.constexpr, PARTS: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    """Sums of outputs n with what the adapter of the row adds to them."""
    n_live, whole = n < n_rows, 2 * n_rows if GATED else n_rows
    total = add_adapter(
        total, b, inner, slot, rank, part, n, n_live, whole, slot_stride, PARTS, RANK
    )
    if GATED:
        up = add_adapter(
            up, b, inner, slot, up_rank, 1, n_rows + n, n_live, whole, slot_stride, PARTS, RANK
        )
    return total, up


@triton.jit
def gemv_kernel(
    x, weight, bias, norm, out, b, inner, ranks, slots, slot_stride, rank_stride, end0, end1,
    cos_sin, positions, out_slots, k_pool, v_pool, hq, hkv, n_rows, width, eps,
    NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr,
    PARTS: tl.constexpr, RANK: tl.constexpr, HEAD: tl.constexpr, LATE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One row of x times the matrix: each program BLOCK_N of the n_rows outputs.

    The matrix is [n_rows, width], or with GATED [2 * n_rows, width].
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    if HEAD:
        n = rotated_line(n, HEAD)
    lines = weight + n.to(tl.int64)[:, None] * width
    up_lines = lines + n_rows.to(tl.int64) * width
    w, u = _parts_of_lines(lines, up_lines, k, n < n_rows, width, GATED)
    # What other kernels wrote meanwhile must not be taken from a cache of before.
    READ: tl.constexpr = ".cg" if PARTS else ""
    if PARTS:
        if PDL:
            gdc_launch_dependents()
        slot = tl.load(slots)
        part = 0 if GATED else _part_of(tl.program_id(0) * BLOCK_N, PARTS, end0, end1)
        rank = tl.load(ranks + slot * rank_stride + part, mask=slot >= 0, other=0)
        up_rank = rank
        if GATED:
            up_rank = tl.load(ranks + slot * rank_stride + 1, mask=slot >= 0, other=0)
    elif LATE:
        let_next_start(PDL)
    else:
        take_turn(PDL)
    if HEAD:
        t = tl.arange(0, 1)
        at, slot = tl.load(positions + t), tl.load(out_slots + t)
    row = tl.load(x + k, mask=k < width, other=0.0, cache_modifier=READ)
    if HEAD:
        cos, sin = angles_of(cos_sin, at, t == 0, hq, hkv, HEAD, BLOCK_N)
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    up_acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, width, BLOCK_K):
        place = first + k
        y = row.to(tl.float32)
        if NORM:
            squares += y * y
            y = y * tl.load(norm + place, mask=place < width, other=0.0).to(tl.float32)
        acc += w.to(tl.float32) * y[None, :]
        if GATED:
            up_acc += u.to(tl.float32) * y[None, :]
        if first + BLOCK_K < width:
            then = place + BLOCK_K
            row = tl.load(x + then, mask=then < width, other=0.0, cache_modifier=READ)
            w, u = _parts_of_lines(lines, up_lines, then, n < n_rows, width, GATED)
    total, up = tl.sum(acc, axis=1), tl.sum(up_acc, axis=1)
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / width + eps)
        total, up = total * scale, up * scale
    if BIAS:
        total += tl.load(bias + n, mask=n < n_rows, other=0.0)
        if GATED:
            up += tl.load(bias + n_rows + n, mask=n < n_rows, other=0.0)
    if PARTS:
        if PDL:
            gdc_wait()
        total, up = _with_adapters(
            total, up, b, inner, slot, rank, up_rank, part, n, n_rows, slot_stride,
            GATED, PARTS, RANK,
        )  # fmt: skip
    if GATED:
        total = total / (1.0 + tl.exp(-total)) * up
    if ADD:
        total += tl.load(out + n, mask=n < n_rows, other=0.0).to(tl.float32)
    if HEAD:
        write_rotated(total[None, :], cos, sin, slot, t, t == 0, out, k_pool, v_pool, hq, hkv, HEAD)
    else:
        tl.store(out + n, total.to(out.dtype.element_ty), mask=n < n_rows)


@triton.jit
def _asked_for(x, PDL: tl.constexpr):
    """x, which was loaded before a barrier: all of the loads up there are under way at once.

    Without the barrier, and without an instruction behind it that must not move, the compiler waits
    for the first loads, to store them to shared memory, before it asks for the next ones.
    """
    if PDL:
        x = tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False, pack=2
        )
    return x


@triton.jit
def _columns(first, WAYS: tl.constexpr, BLOCK_K: tl.constexpr):
    """[WAYS, BLOCK_K] columns from `first` on."""
    return (first + tl.arange(0, WAYS) * BLOCK_K)[:, None] + tl.arange(0, BLOCK_K)[None, :]


@triton.jit
def _own_lines(weight, k, line, live, width):
    """[WAYS, BLOCK_K, lines] of a matrix, its columns k [WAYS, BLOCK_K]."""
    places = weight + line.to(tl.int64)[None, None, :] * width + k[:, :, None]
    return tl.load(places, mask=(k < width)[:, :, None] & live[None, None, :], other=0.0)


@triton.jit
def _rows_of(x, k, t, live, width):
    """[WAYS, rows, BLOCK_K] of x, its columns k [WAYS, BLOCK_K]."""
    places = x + t[None, :, None] * width + k[:, None, :]
    return tl.load(places, mask=live[None, :, None] & (k < width)[:, None, :], other=0.0)


@triton.jit
def _gated(total, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """silu(gate) * up of outputs gate, up, gate, ..."""
    gate, up = tl.split(tl.reshape(total, [BLOCK_T, BLOCK_N, 2]))
    return gate / (1.0 + tl.exp(-gate)) * up


@triton.jit
def _row_squares(y):
    """[rows] sums of the squares of y [WAYS, rows, BLOCK_K]."""
    return tl.sum(tl.sum(y.to(tl.float32) * y.to(tl.float32), axis=2), axis=0)


@triton.jit
def _let_next_start(PDL: tl.constexpr, LATE: tl.constexpr, HERE: tl.constexpr):
    """At one of the places where LATE may say so."""
    if PDL and LATE == HERE:
        gdc_launch_dependents()


@triton.jit
def _own_outputs(n_rows, LINES: tl.constexpr, BLOCK_N: tl.constexpr):
    """[LINES] lines of a program's outputs, gate, up, gate, ... where two make one, and which are
    there."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, LINES) // (LINES // BLOCK_N)
    return n + tl.arange(0, LINES) % (LINES // BLOCK_N) * n_rows, n < n_rows


@triton.jit(do_not_specialize=["tokens"])  # one form for all numbers of rows
def rows_kernel(
    x, weight, bias, norm, out, scaled, squares, cos_sin, positions, out_slots, k_pool, v_pool, hq,
    hkv, tokens, n_rows, width, eps,
    NORM: tl.constexpr, GATED: tl.constexpr, ADD: tl.constexpr, BIAS: tl.constexpr,
    SCALED: tl.constexpr, HEAD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    WAYS: tl.constexpr, BLOCK_K: tl.constexpr, REST_K: tl.constexpr, LATE: tl.constexpr,
    WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """At most BLOCK_T rows of x times the matrix [n_rows, width], with GATED [2 * n_rows, width]:
    each program BLOCK_N of the outputs, whose whole lines it has at hand before x is there. A way
    is a part of K that one warp multiplies, in the matrix units; the ways are added in order.
    width is at most WAYS * (BLOCK_K + REST_K).
    """
    _let_next_start(PDL, LATE, 0)
    LINES: tl.constexpr = 2 * BLOCK_N if GATED else BLOCK_N
    n, t = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    line, live = _own_outputs(n_rows, LINES, BLOCK_N)
    t_live, n_live = t < tokens, n < n_rows
    if HEAD:
        line = rotated_line(line, HEAD)
    k = _columns(0, WAYS, BLOCK_K)
    w = _own_lines(weight, k, line, live, width)
    if REST_K:
        rest = _columns(WAYS * BLOCK_K, WAYS, REST_K)
        v = _own_lines(weight, rest, line, live, width)
    if NORM:
        g = tl.load(norm + k, mask=k < width, other=0.0).to(tl.float32)
    if NORM and REST_K:
        h = tl.load(norm + rest, mask=rest < width, other=0.0).to(tl.float32)
    if SCALED:
        norms = tl.load(norm + n, mask=n_live, other=0.0).to(tl.float32)
    tl.debug_barrier()  # see `_asked_for`
    w = _asked_for(w, PDL)
    if REST_K:
        v = _asked_for(v, PDL)
    if NORM:
        w = (w.to(tl.float32) * g[:, :, None]).to(w.dtype)
        if REST_K:
            v = (v.to(tl.float32) * h[:, :, None]).to(v.dtype)
    if PDL:
        gdc_wait()
    _let_next_start(PDL, LATE, 1)
    if HEAD:
        at, slot = places_of(positions, out_slots, t, t_live)
    y = _rows_of(x, k, t, t_live, width)
    if REST_K:
        z = _rows_of(x, rest, t, t_live, width)
    if HEAD:
        cos, sin = angles_of(cos_sin, at, t_live, hq, hkv, HEAD, BLOCK_N)
    place = t[:, None] * n_rows + n[None, :]
    here = t_live[:, None] & n_live[None, :]
    if ADD:
        before = tl.load(out + place, mask=here, other=0.0)
    tl.debug_barrier()
    y = _asked_for(y, PDL)
    if REST_K:
        z = _asked_for(z, PDL)
    acc = dot(y, w, tl.zeros([WAYS, BLOCK_T, LINES], tl.float32), WIDE)
    if REST_K:
        acc = dot(z, v, acc, WIDE)
    _let_next_start(PDL, LATE, 2)
    total = tl.sum(acc, axis=0)
    if NORM:
        whole = _row_squares(y)
        if REST_K:
            whole += _row_squares(z)
        total *= (1.0 / tl.sqrt(whole / width + eps))[:, None]
    if BIAS:
        total += tl.load(bias + line, mask=live, other=0.0)[None, :]
    if GATED:
        total = _gated(total, BLOCK_T, BLOCK_N)
    if ADD:
        total += before.to(tl.float32)
    result = total.to(out.dtype.element_ty)
    if HEAD:
        write_rotated(total, cos, sin, slot, t, t_live, out, k_pool, v_pool, hq, hkv, HEAD)
    else:
        tl.store(out + place, result, mask=here)
    if SCALED:
        _leave_scaled(result, norms, scaled, squares, place, here, t, t_live)


@triton.jit
def _leave_scaled(result, norms, scaled, squares, place, here, t, t_live):
    """For a norm: the sum times the norm's weights, and of each row the squares of this program's
    outputs; of the sum as it was rounded, since later layers read that one."""
    x = tl.where(here, result.to(tl.float32), 0.0)
    tl.store(scaled + place, (x * norms[None, :]).to(scaled.dtype.element_ty), mask=here)
    whole = tl.sum(x * x, axis=1)
    tl.store(squares + t * tl.num_programs(0) + tl.program_id(0), whole, mask=t_live)


@triton.jit
def few_rows(
    x, lines, up_lines, t, t_live, n_live, width,
    GATED: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Sums [BLOCK_T, BLOCK_N] float32 of rows t of x times lines [1, BLOCK_N] of a matrix, and with
    GATED times as many others; else the second ones mean nothing."""
    k = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    up_acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for first in tl.range(0, width, BLOCK_K, num_stages=STAGES):
        i = first + k
        live = (i < width)[:, None] & n_live[None, :]
        w = tl.load(lines + i[:, None], mask=live, other=0.0)
        y = tl.load(
            x + t[:, None] * width + i[None, :],
            mask=t_live[:, None] & (i < width)[None, :],
            other=0.0,
        )
        acc = dot(y, w, acc, WIDE)
        if GATED:
            u = tl.load(up_lines + i[:, None], mask=live, other=0.0)
            up_acc = dot(y, u, up_acc, WIDE)
    return acc, up_acc


@triton.jit
def skinny_kernel(
    x, weight, bias, out, norm, scaled, squares, cos_sin, positions, out_slots, k_pool, v_pool, hq,
    hkv, tokens, n_rows, width, parts, eps,
    GATED: tl.constexpr, BIAS: tl.constexpr, ADD: tl.constexpr, SCALED: tl.constexpr,
    NORMED: tl.constexpr, SQUARES: tl.constexpr, HEAD: tl.constexpr, LATE: tl.constexpr,
    BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
    AHEAD: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """At most BLOCK_T rows of x times the matrix, in the matrix units.

    The matrix is [n_rows, width], or with GATED [2 * n_rows, width]; AHEAD asks for it before the
    wait, which pays while the kernel before leaves the memory idle.
    """
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t = tl.arange(0, BLOCK_T)
    n_live, t_live = n < n_rows, t < tokens
    if HEAD:
        n = rotated_line(n, HEAD)
    lines = weight + n.to(tl.int64)[None, :] * width
    up_lines = lines + n_rows.to(tl.int64) * width
    if PDL:
        if not LATE:
            gdc_launch_dependents()
        if AHEAD:
            near = weight + tl.minimum(n, n_rows - 1).to(tl.int64) * width
            ask_for(near, width, 16)
            if GATED:
                ask_for(near + n_rows.to(tl.int64) * width, width, 16)
        gdc_wait()
        if LATE:
            gdc_launch_dependents()
    if NORMED:
        p = tl.arange(0, SQUARES)
        there = t_live[:, None] & (p < parts)[None, :]
        square = tl.load(squares + t[:, None] * parts + p[None, :], mask=there, other=0.0)
    # What the end needs is asked for now, and used there: so nobody waits for it.
    place = t[:, None] * n_rows + n[None, :]
    here = t_live[:, None] & n_live[None, :]
    if ADD:
        before = tl.load(out + place, mask=here, other=0.0)
    if SCALED:
        norms = tl.load(norm + n, mask=n_live, other=0.0).to(tl.float32)
    if HEAD:
        at, slot = places_of(positions, out_slots, t, t_live)
    acc, up_acc = few_rows(
        x, lines, up_lines, t, t_live, n_live, width,
        GATED, BLOCK_T, BLOCK_N, BLOCK_K, STAGES, WIDE,
    )  # fmt: skip
    if HEAD:
        cos, sin = angles_of(cos_sin, at, t_live, hq, hkv, HEAD, BLOCK_N)
    if NORMED:
        scale = 1.0 / tl.sqrt(tl.sum(square, axis=1) / width + eps)
        acc, up_acc = acc * scale[:, None], up_acc * scale[:, None]
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0)[None, :]
        if GATED:
            up_acc += tl.load(bias + n_rows + n, mask=n_live, other=0.0)[None, :]
    if GATED:
        acc = acc / (1.0 + tl.exp(-acc)) * up_acc
    if ADD:
        acc += before.to(tl.float32)
    result = acc.to(out.dtype.element_ty)
    if HEAD:
        write_rotated(acc, cos, sin, slot, t, t_live, out, k_pool, v_pool, hq, hkv, HEAD)
    else:
        tl.store(out + place, result, mask=here)
    if SCALED:
        _leave_scaled(result, norms, scaled, squares, place, here, t, t_live)


@triton.jit
def fixed_kernel(
    x,
    weight,
    bias,
    out,
    tokens,
    n_rows,
    width,
    BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """Any number of rows of x times the matrix, by one tile shape: a row's sums never change.

    What a library picks by the number of rows sums in another order for another number.
    """
    t = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    n_live, t_live = n < n_rows, t < tokens
    take_turn(PDL)
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    lines = weight + n.to(tl.int64)[None, :] * width
    places = x + t.to(tl.int64)[:, None] * width
    for first in tl.range(0, width, BLOCK_K, num_stages=STAGES):
        place = first + k
        w = tl.load(
            lines + place[:, None], mask=(place < width)[:, None] & n_live[None, :], other=0.0
        )
        y = tl.load(
            places + place[None, :], mask=t_live[:, None] & (place < width)[None, :], other=0.0
        )
        acc = dot(y, w, acc, WIDE)
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0)[None, :]
    target = out + t.to(tl.int64)[:, None] * n_rows + n[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=t_live[:, None] & n_live[None, :])
