"""Products of 2 to 64 rows that adapters add to: A beside the product, B in the gate behind it.

Invariant: what A makes of x is ready when the product is. Beside a small matrix it costs no kernel
of its own: the programs of both are one launch, and those of A take the room that those of the
product leave. What is behind the product (a gate here, `lora_norm_kernel`, `rope_write_kernel`)
adds B. A and B are constants: they are asked for, or read, before the wait for the kernel before.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from branchline.kernels.triton.device_functions import take_turn
from branchline.kernels.triton.linear_kernels import few_rows
from branchline.kernels.triton.lora_kernels import add_higher, read_b, shrink_beside, times_b

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: adapted_kernel: operands of a launch
# size: late_kernel: operands of a launch
# size: lora_gate_kernel: operands of a launch
# size: _product: operands of a launch


@triton.jit
def _product(
    x, weight, bias, out, program, tokens, n_rows, width,
    GATED: tl.constexpr, BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, LATE: tl.constexpr, WIDE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One program of `skinny_kernel`; with GATED both halves are stored as they are, [t, 2 n].

    LATE lets the next kernel start once x is there, which it may then read without waiting."""
    n, t = program * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_T)
    n_live, t_live = n < n_rows, t < tokens
    lines = weight + n.to(tl.int64)[None, :] * width
    up_lines = lines + n_rows.to(tl.int64) * width
    if PDL:
        gdc_wait()
        if LATE:
            gdc_launch_dependents()
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


@triton.jit(do_not_specialize=["tokens"])  # many sizes are recorded
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
            GATED, BIAS, BLOCK_T, BLOCK_N, BLOCK_K, STAGES, False, WIDE, PDL,
        )  # fmt: skip
    else:
        shrink_beside(
            x, a, ranks, scales, order, starts, inner, program - programs,
            width, slot_stride, rank_stride, count,
            PARTS, RANK, TILE, BLOCK_R, BLOCK_A, BLOCK_S, WARPS, STAGES_A, WIDE, PDL,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])  # many sizes are recorded
def late_kernel(
    x, weight, bias, out, tokens, n_rows, width,
    GATED: tl.constexpr, BIAS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The product alone; the next kernel (`lora_shrink_kernel`) runs beside it and reads x too."""
    _product(
        x, weight, bias, out, tl.program_id(0), tokens, n_rows, width,
        GATED, BIAS, BLOCK_T, BLOCK_N, BLOCK_K, STAGES, True, WIDE, PDL,
    )  # fmt: skip


@triton.jit
def lora_gate_kernel(
    y, out, b, inner, ranks, slots, width, slot_stride, rank_stride,
    RANK: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """out [t, width] = silu(gate) * up, of y [t, 2 * width] and what B adds to it.

    b [S, RANK, 2 * width], inner [t, 2, RANK]. BLOCK outputs of a row a program; B is read ahead of
    the wait. Rows of rank 0 get the bits of `silu_mul_kernel`.
    """
    row = tl.program_id(0).to(tl.int64)
    i, one = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, 1)
    live, n_all = i < width, 2 * width
    slot = tl.load(slots + row + one)
    rank = tl.load(ranks + slot * rank_stride, mask=slot >= 0, other=0)
    up_rank = tl.load(ranks + slot * rank_stride + 1, mask=slot >= 0, other=0)
    lines = b + slot.to(tl.int64) * slot_stride + i
    w = read_b(lines, rank, live, n_all)
    u = read_b(lines + width, up_rank, live, n_all)
    take_turn(PDL)
    gate = tl.load(y + row * n_all + i, mask=live, other=0.0).to(tl.float32)
    up = tl.load(y + row * n_all + width + i, mask=live, other=0.0).to(tl.float32)
    h_rows = inner + row * (2 * RANK) + one
    more = times_b(tl.zeros_like(gate), w, h_rows, rank)
    more = add_higher(more, lines, h_rows, rank, tl.max(rank, axis=0), live, n_all)
    gate = tl.where(rank > 0, gate + more, gate)
    h_rows, top = h_rows + RANK, tl.max(up_rank, axis=0)
    more = times_b(tl.zeros_like(up), u, h_rows, up_rank)
    more = add_higher(more, lines + width, h_rows, up_rank, top, live, n_all)
    up = tl.where(up_rank > 0, up + more, up)
    gated = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * width + i, gated.to(out.dtype.element_ty), mask=live)
