"""The end of a product of heads: rotary embedding, and the write of keys and values.

Invariant: dimensions of a head that rotate together (i and i + D/2) are outputs of one program,
which takes lines of the matrix in another order than they lie in; the order of a program's sums is
that of any product. Rotations are float32, of sums that have not been rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: angles_of: operands of a launch
# size: write_rotated: operands of a launch


@triton.jit
def rotated_line(output, D: tl.constexpr):
    """Lines of the matrix for outputs of programs: those that rotate together are neighbours."""
    pair = output // 2
    return pair // (D // 2) * D + pair % (D // 2) + output % 2 * (D // 2)


@triton.jit
def pairs_of(BLOCK_N: tl.constexpr):
    """[BLOCK_N / 2] pairs of outputs of a program."""
    return tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)


@triton.jit
def places_of(positions, out_slots, t, t_live):
    """(position, slot) of tokens t."""
    at = tl.load(positions + t, mask=t_live, other=0)
    return at, tl.load(out_slots + t, mask=t_live, other=0)


@triton.jit
def angles_of(cos_sin, at, t_live, hq, hkv, D: tl.constexpr, BLOCK_N: tl.constexpr):
    """(cos, sin) [T, BLOCK_N / 2] float32 of tokens at positions `at` [T] and a program's pairs of
    outputs; 1 and 0 of values, which do not rotate."""
    pair = pairs_of(BLOCK_N)
    rotates = t_live[:, None] & (pair // (D // 2) < hq + hkv)[None, :]
    place = cos_sin + at[:, None] * D + (pair % (D // 2))[None, :]
    cos = tl.load(place, mask=rotates, other=1.0)
    return cos, tl.load(place + D // 2, mask=rotates, other=0.0)


@triton.jit
def write_rotated(
    total, cos, sin, slot, t, t_live, out, k_pool, v_pool, hq, hkv, D: tl.constexpr
):  # fmt: skip
    """Turn outputs [T, 2 * P] of a program: queries go to out [t, hq, D], keys and values of token
    t to its slot of the pools [slots, hkv, D]."""
    T: tl.constexpr = total.shape[0]
    P: tl.constexpr = total.shape[1] // 2
    pair = pairs_of(total.shape[1])
    low, high = tl.split(tl.reshape(total, [T, P, 2]))
    x, y = low * cos - high * sin, high * cos + low * sin
    head, i = (pair // (D // 2))[None, :], (pair % (D // 2))[None, :]
    place = (t.to(tl.int64)[:, None] * hq + head) * D + i
    mine = t_live[:, None] & (head < hq)
    tl.store(out + place, x.to(out.dtype.element_ty), mask=mine)
    tl.store(out + place + D // 2, y.to(out.dtype.element_ty), mask=mine)
    x, y = x.to(k_pool.dtype.element_ty), y.to(k_pool.dtype.element_ty)
    place = (slot.to(tl.int64)[:, None] * hkv + head - hq) * D + i
    mine = t_live[:, None] & (head >= hq) & (head < hq + hkv)
    tl.store(k_pool + place, x, mask=mine)
    tl.store(k_pool + place + D // 2, y, mask=mine)
    place -= hkv * D
    mine = t_live[:, None] & (head >= hq + hkv) & (head < hq + 2 * hkv)
    tl.store(v_pool + place, x, mask=mine)
    tl.store(v_pool + place + D // 2, y, mask=mine)
