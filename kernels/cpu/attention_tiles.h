// Products of bfloat16 attention on the matrix unit of a CPU that has one (AMX).
//
// A step takes STEP keys' or dimensions' pairs of up to 16 query rows: it sums the first and the
// second halves of the pairs each in order, adds both, and adds that to what the steps before have
// summed up. This differs from the chain of `dot2` in its last bits, so where the unit is there, every
// product of an attention runs on it, one query's, too: a query's result depends neither on the rows
// beside it nor on the tile. Pairs of zeros behind the last key change nothing.
#pragma once
#include "attention_plan.h"

namespace bl {

constexpr int STEP = TILE_PAIRS;

// Query rows of a tile when so many are cut into equal tiles.
BL_INLINE int row_tile(int rows) { return rows ? ceil_div(rows, ceil_div(rows, 16)) : 1; }

#if defined(BL_AMX_BF16)

template <int OUT, int X, int W>
BL_INLINE void tile_pairs_product() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(OUT), "i"(X), "i"(W));
}
template <int T>
BL_INLINE void tile_take(const void* rows, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(T) : "memory");
}
template <int T>
BL_INLINE void tile_put(void* rows, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(T) : "memory");
}

// The tiles of a unit: 0 to 3 sums of 16 columns each, 4 query rows, 6 and 7 keys or values.
class AttentionTiles {
  public:
    explicit AttentionTiles(bool wanted, int rows) {
        if (!wanted) return;
        TileShapes shapes;
        for (int t = 0; t < 8; ++t) shapes.set(t, t < 6 ? row_tile(rows) : STEP, 64);
        tiles_.configure(shapes);
    }

  private:
    Tiles tiles_;
};

// The product of a tile of rows with a panel of 16 V columns, into `out` with a stride in floats.
template <int V>
static void tile_strip(const int32_t* a, const Strip& s, float* out, int64_t stride) {
    asm volatile("tilezero %tmm0\n\ttilezero %tmm1\n\ttilezero %tmm2\n\ttilezero %tmm3");
    for (int64_t k = 0; k < s.depth; k += STEP) {
        const int32_t* b = (const int32_t*)s.b + k * s.ldb;
        tile_take<4>(a + k, s.lda * 4);
        tile_take<6>(b, s.ldb * 4);
        tile_pairs_product<0, 4, 6>();
        if (V > 1) {
            tile_take<7>(b + LANES, s.ldb * 4);
            tile_pairs_product<1, 4, 7>();
        }
        if (V > 2) {
            tile_take<6>(b + 2 * LANES, s.ldb * 4);
            tile_pairs_product<2, 4, 6>();
        }
        if (V > 3) {
            tile_take<7>(b + 3 * LANES, s.ldb * 4);
            tile_pairs_product<3, 4, 7>();
        }
    }
    tile_put<0>(out, stride * 4);
    if (V > 1) tile_put<1>(out + LANES, stride * 4);
    if (V > 2) tile_put<2>(out + 2 * LANES, stride * 4);
    if (V > 3) tile_put<3>(out + 3 * LANES, stride * 4);
}

static void tile_columns(const int32_t* a, const Strip& s, float* out, int64_t stride) {
    switch (ceil_div(s.width, LANES)) {
        case 1: return tile_strip<1>(a, s, out, stride);
        case 2: return tile_strip<2>(a, s, out, stride);
        case 3: return tile_strip<3>(a, s, out, stride);
        default: return tile_strip<4>(a, s, out, stride);
    }
}

// What `panel_gemm<true>` computes, in tiles of m rows. Reads and, without alpha, writes whole tiles:
// up to m - 1 rows behind the last.
static void tile_gemm(int rows, int m, const Strip& s) {
    for (int first = 0; first < rows; first += m) {
        const int32_t* a = (const int32_t*)s.a + first * s.lda;
        if (!s.alpha) {
            tile_columns(a, s, s.c + first * s.ldc, s.ldc);
            continue;
        }
        alignas(64) float sums[16 * PANEL];
        tile_columns(a, s, sums, PANEL);
        for (int r = first; r < std::min(rows, first + m); ++r) {
            for (int i = 0; i < s.width; i += LANES) {
                const int n = std::min(LANES, s.width - i);
                float* c = s.c + r * s.ldc + i;
                const f32x16 y = load(sums + (r - first) * PANEL + i);
                store_n(c, fma(y, set1(s.beta[r]), mul(load_n(c, n), set1(s.alpha[r]))), n);
            }
        }
    }
}

#else

struct AttentionTiles {
    AttentionTiles(bool, int) {}
};
static void tile_gemm(int, int, const Strip&) {}

#endif

}  // namespace bl
