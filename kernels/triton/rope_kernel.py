"""Query and key norm, rotary embedding, and the write of keys and values, in one pass over qkv.

Invariant: sums and rotations are float32; what is stored is rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.device_functions import take_turn

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: rope_write_kernel: operands of a launch


@triton.jit
def rope_write_kernel(
    qkv,
    cos_sin,
    positions,
    k_pool,
    v_pool,
    out_slots,
    q_norm,
    k_norm,
    out,
    eps,
    hq,
    hkv,
    D: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr,
    PDL: tl.constexpr,
):
    """A program treats HEADS heads of one token as two tiles [HEADS, HALF] of half heads.

    HALF is D / 2 rounded up to a power of two.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, HALF)
    inside = i < D // 2
    is_q, is_k = head < hq, (head >= hq) & (head < hq + hkv)
    is_v = (head >= hq + hkv) & (head < hq + 2 * hkv)
    live = (head < hq + 2 * hkv)[:, None] & inside[None, :]
    take_turn(PDL)
    place = token * (hq + 2 * hkv) * D + head[:, None] * D + i[None, :]
    a = tl.load(qkv + place, mask=live, other=0.0).to(tl.float32)
    b = tl.load(qkv + place + D // 2, mask=live, other=0.0).to(tl.float32)
    if NORM_Q or NORM_K:
        scale = 1.0 / tl.sqrt((tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / D + eps)
        wa, wb = tl.full([HEADS, HALF], 1.0, tl.float32), tl.full([HEADS, HALF], 1.0, tl.float32)
        if NORM_Q:
            normed = is_q[:, None]
            lower = tl.load(q_norm + i, mask=inside, other=0.0).to(tl.float32)
            upper = tl.load(q_norm + D // 2 + i, mask=inside, other=0.0).to(tl.float32)
            wa = tl.where(normed, lower[None, :] * scale[:, None], wa)
            wb = tl.where(normed, upper[None, :] * scale[:, None], wb)
        if NORM_K:
            normed = is_k[:, None]
            lower = tl.load(k_norm + i, mask=inside, other=0.0).to(tl.float32)
            upper = tl.load(k_norm + D // 2 + i, mask=inside, other=0.0).to(tl.float32)
            wa = tl.where(normed, lower[None, :] * scale[:, None], wa)
            wb = tl.where(normed, upper[None, :] * scale[:, None], wb)
        a, b = a * wa, b * wb
    angle = tl.load(positions + token) * D
    cos = tl.load(cos_sin + angle + i, mask=inside, other=1.0)[None, :]
    sin = tl.load(cos_sin + angle + D // 2 + i, mask=inside, other=0.0)[None, :]
    turned_a = tl.where(is_v[:, None], a, a * cos - b * sin)
    turned_b = tl.where(is_v[:, None], b, b * cos + a * sin)
    q_place = (token * hq + head[:, None]) * D + i[None, :]
    q_live = is_q[:, None] & inside[None, :]
    tl.store(out + q_place, turned_a.to(out.dtype.element_ty), mask=q_live)
    tl.store(out + q_place + D // 2, turned_b.to(out.dtype.element_ty), mask=q_live)
    slot = tl.load(out_slots + token).to(tl.int64) * hkv
    k_place = (slot + head[:, None] - hq) * D + i[None, :]
    k_live = is_k[:, None] & inside[None, :]
    kind = k_pool.dtype.element_ty
    tl.store(k_pool + k_place, turned_a.to(kind), mask=k_live)
    tl.store(k_pool + k_place + D // 2, turned_b.to(kind), mask=k_live)
    v_place = k_place - hkv * D
    v_live = is_v[:, None] & inside[None, :]
    tl.store(v_pool + v_place, turned_a.to(kind), mask=v_live)
    tl.store(v_pool + v_place + D // 2, turned_b.to(kind), mask=v_live)
