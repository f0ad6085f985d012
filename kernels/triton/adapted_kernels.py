"""Products of 2 to 64 rows that adapters add to: A beside the product, B in the gate behind it.

Invariant: what A makes of x is ready when the product is, and costs no kernel of its own: the
programs of both are one launch, and those of A take the room that those of the product leave. What
is behind the product (a gate here, `lora_norm_kernel`, `rope_write_kernel`) adds B. A and B are
constants: they are asked for, or read, before the wait for the kernel before.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from branchline.kernels.triton.device_functions import dot, take_turn
from branchline.kernels.triton.linear_kernels import few_rows
from branchline.kernels.triton.lora_kernels import shrink_beside, tile_of

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: adapted_kernel: operands of a launch
# size: lora_gate_kernel: operands of a launch
# size: _product: operands of a launch
# size: _times_b: operands of a launch


@triton.jit
def _product(
    x, weight, bias, out, program, tokens, n_rows, width,
    GATED: tl.constexpr, BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One program of `skinny_kernel`; with GATED both halves are stored as they are, [t, 2 n]."""
    n, t = program * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    n_live, t_live = n < n_rows, t < tokens
    lines = weight + n.to(tl.int64)[None, :] * width
    up_lines = lines + n_rows.to(tl.int64) * width
    if PDL:
        gdc_wait()
    acc, up_acc = few_rows(
        x, lines, up_lines, t, t_live, n_live, width,
        GATED, BLOCK_T, BLOCK_N, BLOCK_K, STAGES, WIDE,
    )  # fmt: skip
    if BIAS:
        acc += tl.load(bias + n, mask=n_live, other=0.0)[None, :]
        if GATED:
            up_acc += tl.load(bias + n_rows + n, mask=n_live, other=0.0)[None, :]
    here = t_live[:, None] & n_live[None, :]
    place = out + t[:, None] * (2 * n_rows if GATED else n_rows) + n[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=here)
    if GATED:
        tl.store(place + n_rows, up_acc.to(out.dtype.element_ty), mask=here)


@triton.jit
def adapted_kernel(
    x, weight, bias, out, a, ranks, scales, order, starts, inner, programs, tokens, n_rows, width,
    slot_stride, rank_stride, count,
    GATED: tl.constexpr, BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, PARTS: tl.constexpr, RANK: tl.constexpr,
    TILE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_S: tl.constexpr,
    WARPS: tl.constexpr, STAGES_A: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """At most BLOCK_T rows of x times the matrix, by the first `programs`; the others make
    inner [t, PARTS, RANK] float32 = scale * (A x), each of a tile of tokens and a part."""
    program = tl.program_id(0)
    if PDL:
        gdc_launch_dependents()
    if program < programs:
        _product(
            x, weight, bias, out, program, tokens, n_rows, width,
            GATED, BIAS, BLOCK_T, BLOCK_N, BLOCK_K, STAGES, WIDE, PDL,
        )  # fmt: skip
    else:
        shrink_beside(
            x, a, ranks, scales, order, starts, inner, program - programs,
            width, slot_stride, rank_stride, count,
            PARTS, RANK, TILE, BLOCK_R, BLOCK_A, BLOCK_S, WARPS, STAGES_A, WIDE, PDL,
        )  # fmt: skip


@triton.jit
def _times_b(
    sums, w, lines, h_rows, live, n_live, rank, n_all,
    BLOCK_R: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """sums [TILE, N] and `inner` times B, of which the first BLOCK_R ranks are in w."""
    r = tl.arange(0, BLOCK_R)
    for low in tl.range(0, rank, BLOCK_R, num_stages=1):
        known = low + r < rank
        if low > 0:
            w = tl.load(
                lines + (low + r)[:, None] * n_all,
                mask=known[:, None] & n_live[None, :],
                other=0.0,
            )
        h = tl.load(h_rows + (low + r)[None, :], mask=live[:, None] & known[None, :], other=0.0)
        sums = dot(h.to(w.dtype), w, sums, WIDE)
    return sums


@triton.jit
def lora_gate_kernel(
    y, out, b, inner, ranks, order, starts, width, slot_stride, rank_stride, count,
    RANK: tl.constexpr, TILE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_S: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [t, width] = silu(gate) * up, of y [t, 2 * width] and what B adds to it.

    b [S, RANK, 2 * width], inner [t, 2, RANK]. A program takes a tile of tokens of one slot, or of
    none, and BLOCK_N outputs. Rows of rank 0 get the bits of `silu_mul`.
    """
    i, r = tl.arange(0, TILE), tl.arange(0, BLOCK_R)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    n_live = n < width
    slot, start, end, _ = tile_of(starts, count + 1, tl.program_id(0), TILE, BLOCK_S)
    live = start + i < end
    token = tl.load(order + start + i, mask=live, other=0).to(tl.int64)
    rank = tl.load(ranks + slot * rank_stride, mask=slot < count, other=0)
    up_rank = tl.load(ranks + slot * rank_stride + 1, mask=slot < count, other=0)
    lines = b + slot.to(tl.int64) * slot_stride + n[None, :]
    up_lines = lines + width
    first = lines + r[:, None] * (2 * width)
    w = tl.load(first, mask=(r < rank)[:, None] & n_live[None, :], other=0.0)
    u = tl.load(first + width, mask=(r < up_rank)[:, None] & n_live[None, :], other=0.0)
    take_turn(PDL)
    here = live[:, None] & n_live[None, :]
    place = y + token[:, None] * (2 * width) + n[None, :]
    gate = tl.load(place, mask=here, other=0.0).to(tl.float32)
    up = tl.load(place + width, mask=here, other=0.0).to(tl.float32)
    h_rows = inner + token[:, None] * (2 * RANK)
    gate = _times_b(gate, w, lines, h_rows, live, n_live, rank, 2 * width, BLOCK_R, WIDE)
    up = _times_b(up, u, up_lines, h_rows + RANK, live, n_live, up_rank, 2 * width, BLOCK_R, WIDE)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + token[:, None] * width + n[None, :], gated.to(out.dtype.element_ty), mask=here)
