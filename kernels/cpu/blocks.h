// Packed weights of 4 and 8 bits in blocks of 32 inputs, and activations rounded to match them.
//
// A group is 16 columns: for each block their codes, then for each block their scales. So a block of
// a group is 512 codes, four of each column side by side, which is what one register, and one row of
// a matrix tile, takes.
#pragma once
#include <algorithm>

#include "context.h"

namespace bl {

enum Format { Q4_1 = 0, Q8_0 = 1, F32 = 2, BF16 = 3 };

BL_INLINE int64_t code_bytes(int format) { return format == Q4_1 ? 256 : 512; }
BL_INLINE int64_t group_bytes(int format, int64_t blocks) {
    int64_t size = blocks * (format == Q4_1 ? 320 : 544);
    return (size + 63) / 64 * 64;
}

constexpr int MAX_TILE = 16;  // rows whose accumulators fit the registers beside one block
constexpr int CHAINS = 4;     // rows whose integer chains run side by side
constexpr int AHEAD = 16384;  // bytes of weight to ask for before their use: about what arrives from
                              // memory while one waits for it, and little beside a cache

// Rows of a tile when m rows are cut into equal tiles; the last one may have fewer.
BL_INLINE int32_t tile_rows(int64_t m) { return m ? ceil_div(m, ceil_div(m, MAX_TILE)) : 1; }

// Where a row of m lies: activations are kept as [tile][K / 32][row of tile], so that a kernel
// finds every operand at a constant distance from one pointer.
struct TileRow {
    int64_t base, count, lane;
    TileRow(int64_t row, int64_t m, int64_t tile)
        : base(row / tile * tile), count(std::min(tile, m - base)), lane(row - base) {}
};

// One row of K floats -> codes, scale = max|x| / 127, scale * sum of codes, -128 * sum of codes.
static inline void quantize_row(const float* x, int64_t k, TileRow row, Context& c) {
    const int64_t blocks = k / BLOCK;
    int8_t* codes = c.codes.get<int8_t>() + row.base * k + row.lane * BLOCK;
    const int64_t first = row.base * blocks + row.lane;
    float* scales = c.scales.get<float>() + first;
    float* sums = c.sums.get<float>() + first;
    int32_t* offsets = c.offsets.get<int32_t>() + first;
    for (int64_t b = 0; b < blocks; ++b) {
        f32x16 lo = load(x + b * BLOCK), hi = load(x + b * BLOCK + LANES);
        float top = reduce_max(max(abs(lo), abs(hi)));
        float scale = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0.0f;
        i32x16 qlo = to_int(mul(lo, set1(inverse))), qhi = to_int(mul(hi, set1(inverse)));
        store_i8(codes + b * row.count * BLOCK, qlo);
        store_i8(codes + b * row.count * BLOCK + LANES, qhi);
        int32_t sum = reduce_addi(addi(qlo, qhi));
        scales[b * row.count] = scale;
        sums[b * row.count] = scale * float(sum);
        offsets[b * row.count] = -128 * sum;
    }
}

struct GemmRows {
    const uint8_t* ask;  // what is likely read when `AHEAD` more bytes have been
    const int8_t* codes;
    const float* scales;
    const float* sums;
    const int32_t* offsets;
    int64_t blocks;
    const float* bias;
    float* out;
    int64_t ldo;
    int width;  // columns of this group that exist, 1..16
};

BL_INLINE int32_t quad(const int8_t* p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

}  // namespace bl
