// Products of a few rows with packed weights on the matrix unit of a CPU that has one (AMX).
//
// One instruction multiplies a block of a group, 16 columns of 32 codes, with up to 16 rows, or two
// blocks with up to 8. Its integer sums are exact, and what is done with them in floats is what
// `gemm_block` does in the same order, so that the bits of a row do not tell which of the two made it.
//
// One thread, Sapphire Rapids, weights in cache: a block takes 17, 19, 20 and 31 ns for 6, 8, 9 and 16
// rows (Q4_1; without tiles 20, 25, 29 and 46). A row more costs 1.4 ns, most of it its float sums.
#pragma once
#include "blocks.h"
#include "tiles.h"

namespace bl {

constexpr int AMX_ROWS = 6;   // from so many rows on it is the faster way
constexpr int PAIR_ROWS = 8;  // up to so many, two blocks go through a tile at once

#if defined(BL_AMX)
#define BL_LAMBDA __attribute__((always_inline))

// Tile OUT = signed bytes of X times unsigned bytes of W.
template <int OUT, int X, int W>
BL_INLINE void tile_product() {
    asm volatile("tilezero %%tmm%c0\n\ttdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(OUT), "i"(X),
                 "i"(W));
}

// The tiles of products with `rows` rows: 0 to 3 sums, 4 and 5 rows, 6 and 7 weights.
class ProductTiles {
  public:
    void set(int rows) {
        if (rows == rows_) return;
        rows_ = rows;
        const int blocks = rows <= PAIR_ROWS ? 2 : 1;
        TileShapes shapes;
        for (int t = 0; t < 8; ++t) {
            const bool moved = t == 4 || t == 5;
            shapes.set(t, blocks * (t < 6 ? rows : BLOCK / 4), moved ? blocks * BLOCK : 64);
        }
        tiles_.configure(shapes);
    }

  private:
    int rows_ = 0;
    Tiles tiles_;
};

// R accumulators, each of them named, since the compiler keeps an array beside tiles in memory.
template <int R>
struct Sums {
    f32x16 last;
    Sums<R - 1> others;
    template <class F>
    inline BL_LAMBDA void each(F f) {
        others.each(f);
        f(R - 1, last);
    }
};
template <>
struct Sums<0> {
    template <class F>
    inline BL_LAMBDA void each(F) {}
};

// One group times R rows. Blocks, or pairs of them, pass through four stations, each some turns
// behind the one before so that none waits for its own results: codes are unpacked, multiplied, sums
// are stored, and added.
template <int R, int FORMAT>
class TileProduct {
  public:
    BL_INLINE void run(const uint8_t* group, const GemmRows& a) {
        alignas(64) uint8_t codes[RING][BLOCKS * 512];
        alignas(64) int32_t sums[RING][BLOCKS * R * LANES];
        Sums<R> acc;
        acc.each([](int, f32x16& sum) BL_LAMBDA { sum = set1(0.0f); });
        for (int64_t t = 0; t < a.blocks / BLOCKS + ADD; t += RING) {
            turn<0>(group, a, t, codes, sums, acc);
            turn<1>(group, a, t + 1, codes, sums, acc);
            turn<2>(group, a, t + 2, codes, sums, acc);
            turn<3>(group, a, t + 3, codes, sums, acc);
        }
        acc.each([&](int r, f32x16& sum) BL_LAMBDA { write_row(a, r, sum); });
    }

  private:
    static constexpr int BLOCKS = R <= PAIR_ROWS ? 2 : 1;
    static constexpr int RING = 4, MULTIPLY = 2, STORE = 5, ADD = 7;

    // What enters at turn t, and what entered before, go on; T is t modulo 4.
    template <int T>
    BL_INLINE void turn(const uint8_t* group, const GemmRows& a, int64_t t,
                        uint8_t (*codes)[BLOCKS * 512], int32_t (*sums)[BLOCKS * R * LANES],
                        Sums<R>& acc) {
        const auto there = [&](int64_t at) { return uint64_t(at) < uint64_t(a.blocks / BLOCKS); };
        if (there(t))
            for (int i = 0; i < BLOCKS; ++i) unpack(group, a, t * BLOCKS + i, codes[T] + i * 512);
        if (there(t - MULTIPLY)) {
            constexpr int AT = (T + RING - MULTIPLY) % RING, PAIR = AT % 2;
            constexpr int ROWS = BLOCKS * R * BLOCKS * BLOCK, WEIGHTS = BLOCKS * 512;
            const int64_t at = t - MULTIPLY;
            const void* weights = FORMAT == Q4_1 ? codes[AT] : group + at * WEIGHTS;
            tile_load<4 + PAIR, ROWS>(a.codes + at * ROWS, BLOCKS * BLOCK);
            tile_load<6 + PAIR, WEIGHTS>(weights, 64);
            tile_product<AT, 4 + PAIR, 6 + PAIR>();
        }
        if (there(t - STORE)) {
            constexpr int AT = (T + 2 * RING - STORE) % RING;
            tile_store<AT, BLOCKS * R * 64>(sums[AT], 64);
        }
        if (there(t - ADD)) {
            const int32_t* ready = sums[(T + 2 * RING - ADD) % RING];
            add(group, a, (t - ADD) * BLOCKS, ready, acc);
            if (BLOCKS == 2) add(group, a, (t - ADD) * BLOCKS + 1, ready + R * LANES, acc);
        }
    }

    BL_INLINE void unpack(const uint8_t* group, const GemmRows& a, int64_t b, uint8_t* out) {
        constexpr int STEP = FORMAT == Q4_1 ? 320 : 544;  // codes and scales of a block
        for (int i = 0; i < STEP; i += 64) prefetch_near(a.ask + b * STEP + i);
        if (FORMAT == Q4_1) {
            const i32x16 low = set1i(0x0f0f0f0f);
            for (int i = 0; i < 4; ++i) {
                i32x16 v = loadi(group + b * 256 + 64 * i);
                storei(out + 64 * i, andi(v, low));
                storei(out + 64 * (i + 4), andi(shift_right4(v), low));
            }
        } else {
            for (int i = 0; i < 512; i += 64) prefetch(group + b * 512 + i);
        }
    }

    BL_INLINE void add(const uint8_t* group, const GemmRows& a, int64_t b,
                              const int32_t* sums, Sums<R>& acc) {
        constexpr int VALUES = FORMAT == Q4_1 ? 2 * LANES : LANES;
        const uint16_t* scale = (const uint16_t*)(group + a.blocks * code_bytes(FORMAT)) + b * VALUES;
        const f32x16 d = load_f16(scale), m = FORMAT == Q4_1 ? load_f16(scale + LANES) : d;
        const float *scales = a.scales + b * R, *totals = a.sums + b * R;
        const int32_t* offsets = a.offsets + b * R;
        acc.each([&](int r, f32x16& sum) BL_LAMBDA {
            i32x16 dot = loadi(sums + r * LANES);
            if (FORMAT == Q8_0) dot = addi(dot, set1i(offsets[r]));
            sum = fma(to_float(dot), mul(d, set1(scales[r])), sum);
            if (FORMAT == Q4_1) sum = fma(m, set1(totals[r]), sum);
        });
    }
};

template <int R, int FORMAT>
static void tile_product_rows(const uint8_t* group, const GemmRows& a) {
    TileProduct<R, FORMAT>::run(group, a);
}

// AMX_ROWS to MAX_TILE rows; the shapes must have been set.
template <int FORMAT>
static void amx_rows(int rows, const uint8_t* group, const GemmRows& a) {
    switch (rows) {
        case 6: return tile_product_rows<6, FORMAT>(group, a);
        case 7: return tile_product_rows<7, FORMAT>(group, a);
        case 8: return tile_product_rows<8, FORMAT>(group, a);
        case 9: return tile_product_rows<9, FORMAT>(group, a);
        case 10: return tile_product_rows<10, FORMAT>(group, a);
        case 11: return tile_product_rows<11, FORMAT>(group, a);
        case 12: return tile_product_rows<12, FORMAT>(group, a);
        case 13: return tile_product_rows<13, FORMAT>(group, a);
        case 14: return tile_product_rows<14, FORMAT>(group, a);
        case 15: return tile_product_rows<15, FORMAT>(group, a);
        default: return tile_product_rows<16, FORMAT>(group, a);
    }
}

#else

struct ProductTiles {
    void set(int) {}
};
template <int FORMAT>
static void amx_rows(int, const uint8_t*, const GemmRows&) {}

#endif

// Whether so many rows of so many blocks are multiplied on tiles, and whether in pairs of blocks.
BL_INLINE bool on_tiles(int64_t rows, int64_t blocks) {
    return rows >= AMX_ROWS && (rows > PAIR_ROWS || blocks % 2 == 0) && amx_ready();
}
BL_INLINE bool paired(int64_t rows, int64_t blocks) {
    return rows <= PAIR_ROWS && on_tiles(rows, blocks);
}

// Where block b of a row lies when blocks go in pairs: a pair of blocks of R rows is 2 R rows of a
// tile, the first half of the first block's codes and zeros, the second of zeros and the other's. So
// one product has the sums of both, each of its own. Writes the zeros.
BL_INLINE int8_t* pair_row(int8_t* rows, int64_t b, int64_t lane, int64_t count) {
    const int64_t second = b % 2;
    int8_t* row = rows + (b / 2 * 2 * count + second * count + lane) * 2 * BLOCK;
    storei(row, set1i(0));
    return row + second * BLOCK;
}

}  // namespace bl
