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

// The sums of row r, with the bias, into the output.
BL_INLINE void write_row(const GemmRows& a, int r, f32x16 sum) {
    float* out = a.out + r * a.ldo;
    if (a.bias) sum = add(sum, load_n(a.bias, a.width));
    if (a.width == LANES) store(out, sum);
    else store_n(out, sum, a.width);
}

BL_INLINE int32_t quad(const int8_t* p) {
    int32_t v;
    memcpy(&v, p, 4);
    return v;
}

}  // namespace bl
