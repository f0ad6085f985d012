"""Products of a few rows with a matrix, where reading the matrix is all the work.

Invariant: a program owns some columns of the output and sums over all of K by itself, in float32
and in a fixed order, so results are the same from run to run. The weights are constants: they are
asked for before the wait for the kernel before.

Three prologues and one epilogue are compiled in:
  NORM   y = rms_norm(x): the products take x * norm, the row's scale is applied to the sums.
  GATED  y = silu(gate) * up, x holding both.
  ADD    the output is added to what is in `out`, the residual stream.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: fixed_kernel: operands of a launch
# size: gemv_kernel: operands of a launch
# size: skinny_kernel: operands of a launch


@triton.jit
def gemv_kernel(
    x,
    weight,
    bias,
    norm,
    out,
    n_rows,
    width,
    eps,
    NORM: tl.constexpr,
    GATED: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """One row of x times the matrix [n_rows, width]: each program some rows of the matrix."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    n_live = n < n_rows
    lines = weight + n.to(tl.int64)[:, None] * width
    w = tl.load(lines + k[None, :], mask=n_live[:, None] & (k < width)[None, :], other=0.0)
    if NORM:
        scales = tl.load(norm + k, mask=k < width, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    squares = tl.zeros([BLOCK_K], tl.float32)
    for first in range(0, width, BLOCK_K):
        place = first + k
        y = tl.load(x + place, mask=place < width, other=0.0).to(tl.float32)
        if GATED:
            up = tl.load(x + width + place, mask=place < width, other=0.0).to(tl.float32)
            y = y / (1.0 + tl.exp(-y)) * up
        if NORM:
            squares += y * y
            y = y * scales
        acc += w.to(tl.float32) * y[None, :]
        if first + BLOCK_K < width:
            then = place + BLOCK_K
            w = tl.load(
                lines + then[None, :], mask=n_live[:, None] & (then < width)[None, :], other=0.0
            )
            if NORM:
                scales = tl.load(norm + then, mask=then < width, other=0.0).to(tl.float32)
    total = tl.sum(acc, axis=1)
    if NORM:
        total = total / tl.sqrt(tl.sum(squares, axis=0) / width + eps)
    if BIAS:
        total += tl.load(bias + n, mask=n_live, other=0.0)
    if ADD:
        total += tl.load(out + n, mask=n_live, other=0.0).to(tl.float32)
    tl.store(out + n, total.to(out.dtype.element_ty), mask=n_live)


@triton.jit
def skinny_kernel(
    x,
    weight,
    bias,
    norm,
    out,
    tokens,
    n_rows,
    width,
    eps,
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    WIDE: tl.constexpr,
    PDL: tl.constexpr,
):
    """At most BLOCK_T rows of x times the matrix [n_rows, width], in the matrix units."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    t, k = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    n_live, t_live = n < n_rows, t < tokens
    lines = weight + n.to(tl.int64)[None, :] * width
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    squares = tl.zeros([BLOCK_T], tl.float32)
    for first in tl.range(0, width, BLOCK_K, num_stages=STAGES):
        place = first + k
        w = tl.load(
            lines + place[:, None], mask=(place < width)[:, None] & n_live[None, :], other=0.0
        )
        y = tl.load(
            x + t[:, None] * width + place[None, :],
            mask=t_live[:, None] & (place < width)[None, :],
            other=0.0,
        )
        if NORM:
            wide = y.to(tl.float32)
            squares += tl.sum(wide * wide, axis=1)
            scales = tl.load(norm + place, mask=place < width, other=0.0).to(tl.float32)
            y = (wide * scales[None, :]).to(y.dtype)
        if WIDE:  # the interpreter takes the bits of a bfloat16 for an integer
            y, w = y.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(y, w, acc, input_precision="ieee")
    if NORM:
        acc = acc / tl.sqrt(squares / width + eps)[:, None]
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0)[None, :]
    place = t[:, None] * n_rows + n[None, :]
    live = t_live[:, None] & n_live[None, :]
    if ADD:
        acc += tl.load(out + place, mask=live, other=0.0).to(tl.float32)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=live)


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
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
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
        if WIDE:  # the interpreter takes the bits of a bfloat16 for an integer
            y, w = y.to(tl.float32), w.to(tl.float32)
        acc = tl.dot(y, w, acc, input_precision="ieee")
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0)[None, :]
    target = out + t.to(tl.int64)[:, None] * n_rows + n[None, :]
    tl.store(target, acc.to(out.dtype.element_ty), mask=t_live[:, None] & n_live[None, :])
