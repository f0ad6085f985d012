// Optional per-head norm, rotary embedding of q and k, and the write of k and v into the pools.
// Heads of one token are handled alone; a token never sees another.
#pragma once
#include "dense.h"
#include "transpose.h"

namespace bl {

static void norm_head(const float* x, const float* w, float eps, int d, float* out) {
    f32x16 sum = set1(0.0f);
    for (int i = 0; i < d; i += LANES) {
        f32x16 v = load_n(x + i, d - i < LANES ? d - i : LANES);
        sum = fma(v, v, sum);
    }
    const f32x16 scale = set1(1.0f / std::sqrt(reduce_add(sum) / float(d) + eps));
    for (int i = 0; i < d; i += LANES) {
        const int n = d - i < LANES ? d - i : LANES;
        store_n(out + i, mul(mul(load_n(x + i, n), scale), load_n(w + i, n)), n);
    }
}

static void rotate_head(const float* x, const float* cos_sin, int d, float* out) {
    const int half = d / 2;
    for (int i = 0; i < half; i += LANES) {
        const int n = half - i < LANES ? half - i : LANES;
        f32x16 a = load_n(x + i, n), b = load_n(x + half + i, n);
        f32x16 c = load_n(cos_sin + i, n), s = load_n(cos_sin + half + i, n);
        f32x16 na = sub(set1(0.0f), b);
        store_n(out + i, fma(na, s, mul(a, c)), n);
        store_n(out + half + i, fma(a, s, mul(b, c)), n);
    }
}

static void store_pool(void* pool, int64_t at, const float* x, int d, bool bf16) {
    if (bf16) round_row(x, d, (uint16_t*)pool + at);
    else memcpy((float*)pool + at, x, sizeof(float) * d);
}

static void rope_token(const Op& op, int64_t t) {
    const int hq = op.i[0], hkv = op.i[1], d = op.i[2];
    const bool bf16 = op.i[3];
    const float* x = (const float*)op.p[0] + t * int64_t(hq + 2 * hkv) * d;
    const float* cos_sin = (const float*)op.p[1] + ((const int64_t*)op.p[2])[t] * d;
    const int64_t slot = int64_t(((const int32_t*)op.p[5])[t]) * hkv * d;
    const float* q_norm = (const float*)op.p[6];
    const float* k_norm = (const float*)op.p[7];
    float* q_out = (float*)op.p[8] + t * int64_t(hq) * d;
    float normed[MAX_HEAD], turned[MAX_HEAD];
    for (int h = 0; h < hq + hkv; ++h, x += d) {
        const float* w = h < hq ? q_norm : k_norm;
        const float* from = x;
        if (w) {
            norm_head(x, w, op.f[0], d, normed);
            from = normed;
        }
        if (h < hq) {
            rotate_head(from, cos_sin, d, q_out + h * d);
        } else {
            rotate_head(from, cos_sin, d, turned);
            store_pool(op.p[3], slot + (h - hq) * d, turned, d, bf16);
        }
    }
    for (int h = 0; h < hkv; ++h, x += d) store_pool(op.p[4], slot + h * d, x, d, bf16);
}

}  // namespace bl
