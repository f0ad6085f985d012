// Linears with dense weights in panels of 64 columns, and the same kernel for attention tiles.
//
// float32 panel: [K][64]. bfloat16 panel: [K / 2][64][2], K padded with a zero to an even number.
// One output element is a chain of fused multiply-adds over k in order (bfloat16: over pairs of k,
// the machine's dot instruction where it has one), so it does not depend on the number of rows.
//
// One thread, Sapphire Rapids: float32 145 to 179 GFLOP/s of 215; bfloat16 90 of 107 (its dot
// instruction is slow there; on Zen 4 it is the faster one); one row 28 GB/s from the third level.
#pragma once
#include "context.h"

namespace bl {

constexpr int PANEL = 64;
constexpr int MAX_STRIP = 6;

// C[r] = alpha[r] * C[r] + beta[r] * (A B)[r], or A B where alpha is null (+ bias where given).
struct Strip {
    const void* a;     // rows of float, or of bfloat16 pairs
    int64_t lda;       // in units of 4 bytes
    const void* b;     // [depth][ldb] float, or bfloat16 pairs
    int64_t ldb, depth;
    const int32_t* slots;  // where given, row k of B is b + slots[k] * ldb instead of b + k * ldb
    float* c;
    int64_t ldc;
    const float* alpha;
    const float* beta;
    const float* bias;
    int width;  // columns to store, 1..16 * V
};

template <int R, int V, bool PAIRS, bool SLOTS>
static void strip_kernel(const Strip& s) {
    f32x16 acc[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) acc[r][v] = set1(0.0f);
    const int32_t* base = (const int32_t*)s.b;
    const int32_t* a = (const int32_t*)s.a;
    for (int64_t k = 0; k < s.depth; ++k) {
        const int32_t* b = base + (SLOTS ? s.slots[k] : k) * s.ldb;
        i32x16 w[V];
        for (int v = 0; v < V; ++v) w[v] = loadi(b + v * LANES);
        if (R == 1 && !SLOTS) for (int v = 0; v < V; ++v) prefetch(b + 16 * s.ldb + v * LANES);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const int32_t x = a[r * s.lda + k];
            for (int v = 0; v < V; ++v) {
                if (PAIRS) acc[r][v] = dot2(acc[r][v], w[v], x);
                else acc[r][v] = fma(as_float(set1i(x)), as_float(w[v]), acc[r][v]);
            }
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < V; ++v) {
            const int n = s.width - v * LANES < LANES ? s.width - v * LANES : LANES;
            if (n <= 0) break;
            float* c = s.c + r * s.ldc + v * LANES;
            f32x16 y = acc[r][v];
            if (s.alpha) y = fma(y, set1(s.beta[r]), mul(load_n(c, n), set1(s.alpha[r])));
            if (s.bias) y = add(y, load_n(s.bias + v * LANES, n));
            if (n == LANES) store(c, y);
            else store_n(c, y, n);
        }
    }
}

template <int V, bool PAIRS, bool SLOTS>
static void strip_rows(int rows, const Strip& s) {
    switch (rows) {
        case 1: return strip_kernel<1, V, PAIRS, SLOTS>(s);
        case 2: return strip_kernel<2, V, PAIRS, SLOTS>(s);
        case 3: return strip_kernel<3, V, PAIRS, SLOTS>(s);
        case 4: return strip_kernel<4, V, PAIRS, SLOTS>(s);
        case 5: return strip_kernel<5, V, PAIRS, SLOTS>(s);
        default: return strip_kernel<6, V, PAIRS, SLOTS>(s);
    }
}

// Any number of rows against one panel of at most 64 columns.
template <bool PAIRS, bool SLOTS = false>
static void panel_gemm(int64_t rows, Strip s) {
    const int vectors = ceil_div(s.width, LANES);
    const int64_t strips = ceil_div(rows, MAX_STRIP);
    const Strip whole = s;
    for (int64_t t = 0; t < strips; ++t) {
        const int64_t first = rows * t / strips, count = rows * (t + 1) / strips - first;
        s.a = (const int32_t*)whole.a + first * whole.lda;
        s.c = whole.c + first * whole.ldc;
        if (whole.alpha) {
            s.alpha = whole.alpha + first;
            s.beta = whole.beta + first;
        }
        switch (vectors) {
            case 1: strip_rows<1, PAIRS, SLOTS>(int(count), s); break;
            case 2: strip_rows<2, PAIRS, SLOTS>(int(count), s); break;
            case 3: strip_rows<3, PAIRS, SLOTS>(int(count), s); break;
            default: strip_rows<4, PAIRS, SLOTS>(int(count), s); break;
        }
    }
}

// K floats -> bfloat16 pairs, a zero after an odd last one.
static inline void round_row(const float* x, int64_t k, uint16_t* out) {
    int64_t i = 0;
#if defined(BL_BF16)
    for (; i + LANES <= k; i += LANES)
        _mm256_storeu_si256((__m256i*)(out + i), (__m256i)_mm512_cvtneps_pbh(load(x + i)));
#endif
    for (; i < k; ++i) out[i] = to_bf16(x[i]);
    if (k & 1) out[k] = 0;
}

// Rows [row0, row1) times panels [panel0, panel1) of a dense weight [n, k].
static void dense_gemm(Context& c, const Op& op, int64_t row0, int64_t row1, int64_t panel0,
                       int64_t panel1) {
    const bool pairs = op.i[0] == 3;
    const int64_t n = op.i[1], k = op.i[2], depth = pairs ? (k + 1) / 2 : k;
    for (int64_t p = panel0; p < panel1; ++p) {
        Strip s{};
        s.a = pairs ? (const void*)(c.codes.get<int32_t>() + row0 * depth)
                    : (const void*)((const float*)op.p[0] + row0 * k);
        s.lda = s.depth = depth;
        s.b = (const int32_t*)op.p[1] + p * depth * PANEL;
        s.ldb = PANEL;
        s.c = (float*)op.p[3] + row0 * n + p * PANEL;
        s.ldc = n;
        s.bias = op.p[2] ? (const float*)op.p[2] + p * PANEL : nullptr;
        s.width = int(n - p * PANEL < PANEL ? n - p * PANEL : PANEL);
        if (pairs) panel_gemm<true>(row1 - row0, s);
        else panel_gemm<false>(row1 - row0, s);
    }
}

// Row `id` of a panel weight as floats.
static inline void panel_row(int format, const void* panels, int64_t id, int64_t k, float* out) {
    const int64_t lane = id % PANEL;
    if (format == 3) {
        const int64_t depth = (k + 1) / 2;
        const uint16_t* p = (const uint16_t*)panels + id / PANEL * depth * PANEL * 2 + lane * 2;
        for (int64_t i = 0; i < k; ++i) out[i] = from_bf16(p[i / 2 * PANEL * 2 + (i & 1)]);
    } else {
        const float* p = (const float*)panels + id / PANEL * k * PANEL + lane;
        for (int64_t i = 0; i < k; ++i) out[i] = p[i * PANEL];
    }
}

}  // namespace bl
