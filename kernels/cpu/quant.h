// Linears with 4-bit (Q4_1) and 8-bit (Q8_0) weights on activations rounded to 8 bits.
//
// One output element is: acc = 0; for each block b of 32 inputs, in order:
//   i   = integer dot product of codes (exact)
//   acc = fma(float(i), d[b] * s[b], acc); Q4_1 also acc = fma(m[b], s[b] * sum of codes[b], acc)
// whatever the number of rows, so one row's result never depends on the others. The kernel holds
// 16 columns of one block in 8 registers (unpacked once) and passes R rows over them.
//
// One thread, Zen 5, weights from memory: a block of 512 weights takes 7.7 ns for one row and 8.4 for
// five (Q4_1; with the requests 4 KB ahead 11 and 15), 7.5 in cache for five.
// One thread, Sapphire Rapids (850 GOP/s of byte products): 16 rows and more 400 GOP/s in cache,
// 270 to 320 within a forward; one row 55 GB/s from cache, 28 GB/s from the third level, and the
// read rate of the machine (15 GB/s) within a forward.
#pragma once
#include "amx.h"

namespace bl {

// One row of K floats -> codes, scale = max|x| / 127, scale * sum of codes, -128 * sum of codes.
static inline void quantize_row(const float* x, int64_t k, TileRow row, Context& c) {
    const int64_t blocks = k / BLOCK;
    int8_t* codes = c.codes.get<int8_t>() + row.base * k + row.lane * BLOCK;
    const int64_t first = row.base * blocks + row.lane;
    const bool pairs = paired(row.count, blocks);
    float* scales = c.scales.get<float>() + first;
    float* sums = c.sums.get<float>() + first;
    int32_t* offsets = c.offsets.get<int32_t>() + first;
    for (int64_t b = 0; b < blocks; ++b) {
        f32x16 lo = load(x + b * BLOCK), hi = load(x + b * BLOCK + LANES);
        float top = reduce_max(max(abs(lo), abs(hi)));
        float scale = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
        i32x16 qlo = to_int(mul(lo, set1(inverse))), qhi = to_int(mul(hi, set1(inverse)));
        int8_t* at = codes + b * row.count * BLOCK;
        if (pairs) at = pair_row(c.codes.get<int8_t>() + row.base * k, b, row.lane, row.count);
        store_i8(at, qlo);
        store_i8(at + LANES, qhi);
        int32_t sum = reduce_addi(addi(qlo, qhi));
        scales[b * row.count] = scale;
        sums[b * row.count] = scale * float(sum);
        offsets[b * row.count] = -128 * sum;
    }
}

// N rows of one block: integer chains side by side, then each row's float update.
template <int N, int FORMAT>
BL_INLINE void gemm_block(const i32x16* w, f32x16 d, f32x16 m, const int8_t* x, const float* scales,
                          const float* sums, const int32_t* offsets, f32x16* acc) {
    i32x16 dot[N];
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) dot[r] = set1i(FORMAT == Q8_0 ? offsets[r] : 0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
#pragma GCC unroll 4
        for (int r = 0; r < N; ++r) dot[r] = dot4(dot[r], w[i], quad(x + r * BLOCK + 4 * i));
    }
#pragma GCC unroll 4
    for (int r = 0; r < N; ++r) {
        acc[r] = fma(to_float(dot[r]), mul(d, set1(scales[r])), acc[r]);
        if (FORMAT == Q4_1) acc[r] = fma(m, set1(sums[r]), acc[r]);
    }
}

template <int R, int FORMAT>
static void gemm_tile(const uint8_t* group, const GemmRows& a) {
    constexpr int STEP = FORMAT == Q4_1 ? 320 : 544;  // codes and scales of a block
    const uint8_t* code = group;
    // Groups, and weights in the order of their use, follow one another: one stream of requests
    // runs ahead of them at the rate of the blocks, over codes and scales alike.
    const uint8_t* ask = a.ask;
    const uint16_t* scale = (const uint16_t*)(group + a.blocks * code_bytes(FORMAT));
    const int8_t* x = a.codes;
    const float *scales = a.scales, *sums = a.sums;
    const int32_t* offsets = a.offsets;
    f32x16 acc[R];
    for (int r = 0; r < R; ++r) acc[r] = set1(0.0f);
    for (int64_t b = 0; b < a.blocks; ++b) {
        i32x16 w[8];
        if (FORMAT == Q4_1) {
            const i32x16 low = set1i(0x0f0f0f0f);
            for (int i = 0; i < 4; ++i) {
                i32x16 v = loadi(code + 64 * i);
                w[i] = andi(v, low);
                w[i + 4] = andi(shift_right4(v), low);
            }
            code += 256;
        } else {
            for (int i = 0; i < 8; ++i) w[i] = loadi(code + 64 * i);
            code += 512;
        }
        for (int i = 0; i < STEP; i += 64) prefetch_near(ask + i);
        ask += STEP;
        const f32x16 d = load_f16(scale);
        f32x16 m = d;
        if (FORMAT == Q4_1) m = load_f16(scale + LANES);
        scale += FORMAT == Q4_1 ? 2 * LANES : LANES;
        constexpr int WHOLE = R / CHAINS * CHAINS, REST = R % CHAINS;
#pragma GCC unroll 4
        for (int r = 0; r < WHOLE; r += CHAINS)
            gemm_block<CHAINS, FORMAT>(w, d, m, x + r * BLOCK, scales + r, sums + r, offsets + r,
                                       acc + r);
        if constexpr (REST > 0)
            gemm_block<REST, FORMAT>(w, d, m, x + WHOLE * BLOCK, scales + WHOLE, sums + WHOLE,
                                     offsets + WHOLE, acc + WHOLE);
        x += R * BLOCK;
        scales += R;
        sums += R;
        offsets += R;
    }
    for (int r = 0; r < R; ++r) write_row(a, r, acc[r]);
}

template <int FORMAT>
static void gemm_rows(int rows, const uint8_t* group, const GemmRows& a) {
    switch (rows) {
        case 1: return gemm_tile<1, FORMAT>(group, a);
        case 2: return gemm_tile<2, FORMAT>(group, a);
        case 3: return gemm_tile<3, FORMAT>(group, a);
        case 4: return gemm_tile<4, FORMAT>(group, a);
        case 5: return gemm_tile<5, FORMAT>(group, a);
        case 6: return gemm_tile<6, FORMAT>(group, a);
        case 7: return gemm_tile<7, FORMAT>(group, a);
        case 8: return gemm_tile<8, FORMAT>(group, a);
        case 9: return gemm_tile<9, FORMAT>(group, a);
        case 10: return gemm_tile<10, FORMAT>(group, a);
        case 11: return gemm_tile<11, FORMAT>(group, a);
        case 12: return gemm_tile<12, FORMAT>(group, a);
        case 13: return gemm_tile<13, FORMAT>(group, a);
        case 14: return gemm_tile<14, FORMAT>(group, a);
        case 15: return gemm_tile<15, FORMAT>(group, a);
        default: return gemm_tile<16, FORMAT>(group, a);
    }
}

// Tiles [tile0, tile1) of m rows times groups [group0, group1) of a packed weight [n, k].
static void quant_gemm(Context& c, const Op& op, int64_t m, int64_t tile0, int64_t tile1,
                       int64_t group0, int64_t group1) {
    const int format = op.i[0];
    const int64_t n = op.i[1], k = op.i[2], blocks = k / BLOCK;
    const int64_t tile = tile_rows(m), stride = group_bytes(format, blocks);
    // Behind this chunk comes, for this thread, most likely the one behind those of the others.
    const int64_t others = (c.threads - 1) * (group1 - group0) * stride;
    ProductTiles tiles;
    // A few groups per tile: their weights stay in the first-level cache, stores run in one page.
    const int64_t few = std::max<int64_t>(1, std::min<int64_t>(4, 32000 / stride));
    for (int64_t g0 = group0; g0 < group1; g0 += few) {
        for (int64_t t = tile0; t < tile1; ++t) {
            const int64_t first = t * tile, at = first * blocks;
            const int rows = int(std::min(tile, m - first));
            const bool matrix = on_tiles(rows, blocks);
            if (matrix) tiles.set(rows);
            for (int64_t g = g0; g < std::min(g0 + few, group1); ++g) {
                const uint8_t* group = (const uint8_t*)op.p[1] + g * stride;
                const float* bias = op.p[2] ? (const float*)op.p[2] + g * LANES : nullptr;
                const int64_t ahead = (group1 - g) * stride > AHEAD ? AHEAD : AHEAD + others;
                GemmRows a{group + ahead, c.codes.get<int8_t>() + first * k,
                           c.scales.get<float>() + at, c.sums.get<float>() + at,
                           c.offsets.get<int32_t>() + at, blocks, bias,
                           (float*)op.p[3] + first * n + g * LANES, n,
                           int(std::min<int64_t>(n - g * LANES, LANES))};
                const auto run = format == Q4_1 ? matrix ? amx_rows<Q4_1> : gemm_rows<Q4_1>
                                                : matrix ? amx_rows<Q8_0> : gemm_rows<Q8_0>;
                run(rows, group, a);
            }
        }
    }
}

// Row `id` of a packed weight as floats.
static void dequantize_row(const Op& op, int64_t id, float* out) {
    const int format = op.i[0];
    const int64_t k = op.i[1], blocks = k / BLOCK, lane = id % LANES;
    const uint8_t* group = (const uint8_t*)op.p[1] + id / LANES * group_bytes(format, blocks);
    const uint16_t* scale = (const uint16_t*)(group + blocks * code_bytes(format));
    for (int64_t b = 0; b < blocks; ++b) {
        const uint8_t* code = group + b * code_bytes(format) + lane * 4;
        if (format == Q4_1) {
            float d = scalar_f16(scale + b * 32 + lane), m = scalar_f16(scale + b * 32 + 16 + lane);
            for (int i = 0; i < 16; ++i) {
                uint8_t v = code[i / 4 * 64 + i % 4];
                out[b * BLOCK + i] = float(v & 15) * d + m;
                out[b * BLOCK + i + 16] = float(v >> 4) * d + m;
            }
        } else {
            float d = scalar_f16(scale + b * 16 + lane);
            for (int i = 0; i < BLOCK; ++i)
                out[b * BLOCK + i] = float(int(code[i / 4 * 64 + i % 4]) - 128) * d;
        }
    }
}

}  // namespace bl
