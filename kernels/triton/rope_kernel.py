"""Query and key norm, rotary embedding, and the write of keys and values, in one pass over qkv.

Invariant: sums and rotations are float32; what is stored is rounded once. Of a layer with adapters
it may begin with their products with B, which are constants and read before the wait.
"""

from __future__ import annotations

import triton
import triton.language as tl

from branchline.kernels.triton.device_functions import let_next_start, take_turn
from branchline.kernels.triton.lora_kernels import add_higher, read_b, times_b

# The arguments of a kernel are its operands: a launch has no structures to hand over.
# size: rope_write_kernel: operands of a launch


@triton.jit
def rope_write_kernel(
    qkv, cos_sin, positions, k_pool, v_pool, out_slots, q_norm, k_norm, out, b, inner, ranks, slots,
    eps, hq, hkv, slot_stride, rank_stride,
    D: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, NORM_Q: tl.constexpr,
    NORM_K: tl.constexpr, RANK: tl.constexpr, LATE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A program treats HEADS heads of one token as two tiles [HEADS, HALF] of half heads.

    HALF is D / 2 rounded up to a power of two. RANK: of adapters (0 = none): inner [t, 3, RANK]
    times b [S, RANK, all heads] is added to qkv. LATE lets the next kernel start when all before
    this one has ended, so that it may read what that wrote without waiting for this one.
    """
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    i = tl.arange(0, HALF)
    inside = i < D // 2
    is_q, is_k = head < hq, (head >= hq) & (head < hq + hkv)
    is_v = (head >= hq + hkv) & (head < hq + 2 * hkv)
    live = (head < hq + 2 * hkv)[:, None] & inside[None, :]
    if RANK:
        own_slot = tl.load(slots + token)
        part = (head >= hq).to(tl.int32) + (head >= hq + hkv).to(tl.int32)
        rank = ranks + tl.maximum(own_slot, 0) * rank_stride + part
        rank = tl.load(rank, mask=head < hq + 2 * hkv, other=0)
        rank = tl.where(own_slot >= 0, rank, 0)[:, None]
        n_all = (hq + 2 * hkv) * D
        lines = b + own_slot.to(tl.int64) * slot_stride + head[:, None] * D + i[None, :]
        w = read_b(lines, rank, live, n_all)
        v = read_b(lines + D // 2, rank, live, n_all)
    if LATE:
        let_next_start(PDL)
    else:
        take_turn(PDL)
    place = token * (hq + 2 * hkv) * D + head[:, None] * D + i[None, :]
    x = tl.load(qkv + place, mask=live, other=0.0).to(tl.float32)
    y = tl.load(qkv + place + D // 2, mask=live, other=0.0).to(tl.float32)
    if RANK:
        # a branch on the rank would let the compiler move what is read above to behind the wait
        h_rows = inner + ((token * 3 + part) * RANK)[:, None]
        x_more = times_b(tl.zeros_like(x), w, h_rows, rank)
        y_more = times_b(tl.zeros_like(y), v, h_rows, rank)
        top = tl.max(rank)
        x_more = add_higher(x_more, lines, h_rows, rank, top, live, n_all)
        y_more = add_higher(y_more, lines + D // 2, h_rows, rank, top, live, n_all)
        x, y = tl.where(rank > 0, x + x_more, x), tl.where(rank > 0, y + y_more, y)
    if NORM_Q or NORM_K:
        scale = 1.0 / tl.sqrt((tl.sum(x * x, axis=1) + tl.sum(y * y, axis=1)) / D + eps)
        wa, wb = tl.full([HEADS, HALF], 1.0, tl.float32), tl.full([HEADS, HALF], 1.0, tl.float32)
        if NORM_Q:
            normed = is_q[:, None]
            low_g = tl.load(q_norm + i, mask=inside, other=0.0).to(tl.float32)
            high_g = tl.load(q_norm + D // 2 + i, mask=inside, other=0.0).to(tl.float32)
            wa = tl.where(normed, low_g[None, :] * scale[:, None], wa)
            wb = tl.where(normed, high_g[None, :] * scale[:, None], wb)
        if NORM_K:
            normed = is_k[:, None]
            low_g = tl.load(k_norm + i, mask=inside, other=0.0).to(tl.float32)
            high_g = tl.load(k_norm + D // 2 + i, mask=inside, other=0.0).to(tl.float32)
            wa = tl.where(normed, low_g[None, :] * scale[:, None], wa)
            wb = tl.where(normed, high_g[None, :] * scale[:, None], wb)
        x, y = x * wa, y * wb
    angle = tl.load(positions + token) * D
    cos = tl.load(cos_sin + angle + i, mask=inside, other=1.0)[None, :]
    sin = tl.load(cos_sin + angle + D // 2 + i, mask=inside, other=0.0)[None, :]
    turned_a = tl.where(is_v[:, None], x, x * cos - y * sin)
    turned_b = tl.where(is_v[:, None], y, y * cos + x * sin)
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
