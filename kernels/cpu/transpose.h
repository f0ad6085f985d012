// Moves of 32-bit words that prepare key and value tiles: exact, no arithmetic.
#pragma once
#include "simd.h"

namespace bl {

constexpr int MAX_GROUP = 64;   // query heads per KV head
constexpr int MAX_HEAD = 1024;  // largest head size
alignas(64) static const int32_t ZERO_ROW[MAX_HEAD] = {};

// to[i * ldt + j] = from[j][at + i] for i < words.
static void transpose16(const int32_t* const* from, int at, int words, int32_t* to, int64_t ldt) {
    int i = 0;
#if defined(BL_AVX512)
    // Loads put rows 4q..4q+3 into the 128-bit quarter q, so that two rounds of shuffles are left.
    for (; i + 4 <= words; i += 4) {
        __m512i v[4];
        for (int j = 0; j < 4; ++j) {
            for (int q = 0; q < 4; ++q) {
                const __m128i part = _mm_loadu_si128((const __m128i*)(from[4 * q + j] + at + i));
                v[j] = q ? _mm512_mask_broadcast_i32x4(v[j], __mmask16(15 << 4 * q), part)
                         : _mm512_castsi128_si512(part);
            }
        }
        __m512i a = _mm512_unpacklo_epi32(v[0], v[1]), b = _mm512_unpacklo_epi32(v[2], v[3]);
        __m512i c = _mm512_unpackhi_epi32(v[0], v[1]), d = _mm512_unpackhi_epi32(v[2], v[3]);
        _mm512_storeu_si512(to + i * ldt, _mm512_unpacklo_epi64(a, b));
        _mm512_storeu_si512(to + (i + 1) * ldt, _mm512_unpackhi_epi64(a, b));
        _mm512_storeu_si512(to + (i + 2) * ldt, _mm512_unpacklo_epi64(c, d));
        _mm512_storeu_si512(to + (i + 3) * ldt, _mm512_unpackhi_epi64(c, d));
    }
#endif
    for (; i < words; ++i)
        for (int j = 0; j < 16; ++j) to[i * ldt + j] = from[j][at + i];
}

// to[i] = bfloat16 pair (first[i], second[i]); a null second gives zeros in its half.
static void interleave(const int32_t* first, const int32_t* second, int d, int32_t* to) {
    const uint16_t* a = (const uint16_t*)first;
    const uint16_t* b = (const uint16_t*)second;
    int i = 0;
#if defined(BL_AVX512)
    for (; i + 16 <= d; i += 16) {
        __m512i x = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(a + i)));
        if (b) {
            __m512i y = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(b + i)));
            x = _mm512_or_si512(x, _mm512_slli_epi32(y, 16));
        }
        _mm512_storeu_si512(to + i, x);
    }
#endif
    for (; i < d; ++i) to[i] = int32_t(uint32_t(a[i]) | (b ? uint32_t(b[i]) << 16 : 0));
}

}  // namespace bl
