// The matrix unit of a CPU that has one (AMX): eight tiles of up to 16 rows of 64 bytes for a thread.
//
// A thread that uses tiles gives them back when its `Tiles` end: while it has some, whatever else it
// computes takes a quarter longer (Sapphire Rapids), far more than the 0.1 us of shaping them anew.
#pragma once
#include "simd.h"

#if defined(BL_VNNI) && defined(__AMX_INT8__) && defined(__linux__)
#define BL_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(BL_AMX) && defined(BL_BF16) && defined(__AMX_BF16__)
#define BL_AMX_BF16 1
#endif

namespace bl {

constexpr int TILE_PAIRS = 16;  // pairs of 16-bit numbers of a row that a product takes

#if defined(BL_AMX)

// Whether the system lets this process use the unit, which it must be asked for once.
static bool amx_ready() {
    static const bool ready = syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) == 0;
    return ready;
}

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};  // of a row
    uint8_t rows[16] = {};
    void set(int tile, int row_count, int row_bytes) {
        rows[tile] = uint8_t(row_count);
        bytes[tile] = uint16_t(row_bytes);
    }
};

class Tiles {
  public:
    Tiles() = default;
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() {
        if (used_) asm volatile("tilerelease" ::: "memory");
    }
    void configure(const TileShapes& shapes) {
        used_ = true;
        asm volatile("ldtilecfg %0" ::"m"(shapes));
    }

  private:
    bool used_ = false;
};

// Tiles move whole pieces of memory, which are named here so that accumulators may stay in registers.
template <int BYTES>
struct Piece {
    uint8_t bytes[BYTES];
};
template <int T, int BYTES>
BL_INLINE void tile_load(const void* rows, int64_t stride) {
    const auto* piece = (const Piece<BYTES>*)rows;
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(T), "m"(*piece));
}
template <int T, int BYTES>
BL_INLINE void tile_store(void* rows, int64_t stride) {
    auto* piece = (Piece<BYTES>*)rows;
    asm volatile("tilestored %%tmm%c3, (%1,%2,1)" : "=m"(*piece) : "r"(rows), "r"(stride), "i"(T));
}

#else

static bool amx_ready() { return false; }

#endif

}  // namespace bl
