// Moves of 32-bit words that prepare key and value tiles: exact, no arithmetic.
#pragma once
#include "simd.h"

namespace bl {

constexpr int MAX_GROUP = 64;  // query heads per KV head

// to[i * ldt + j] = from[j][at + i] for i < words; a null row gives zeros.
static void transpose16(const int32_t* const* from, int at, int words, int32_t* to, int64_t ldt) {
#if defined(BL_AVX512)
    __m512i r[16], s[16];
    const __mmask16 mask = __mmask16((1u << words) - 1);
    for (int j = 0; j < 16; ++j)
        r[j] = from[j] ? _mm512_maskz_loadu_epi32(mask, from[j] + at) : _mm512_setzero_si512();
    for (int j = 0; j < 16; j += 2) {
        s[j] = _mm512_unpacklo_epi32(r[j], r[j + 1]);
        s[j + 1] = _mm512_unpackhi_epi32(r[j], r[j + 1]);
    }
    for (int j = 0; j < 16; j += 4) {
        r[j] = _mm512_unpacklo_epi64(s[j], s[j + 2]);
        r[j + 1] = _mm512_unpackhi_epi64(s[j], s[j + 2]);
        r[j + 2] = _mm512_unpacklo_epi64(s[j + 1], s[j + 3]);
        r[j + 3] = _mm512_unpackhi_epi64(s[j + 1], s[j + 3]);
    }
    for (int j = 0; j < 4; ++j) {  // r[4g + j] holds columns j, j+4, j+8, j+12 of rows 4g..4g+3
        __m512i a = _mm512_shuffle_i32x4(r[j], r[j + 4], 0x88);
        __m512i b = _mm512_shuffle_i32x4(r[j], r[j + 4], 0xdd);
        __m512i c = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0x88);
        __m512i d = _mm512_shuffle_i32x4(r[j + 8], r[j + 12], 0xdd);
        s[j] = _mm512_shuffle_i32x4(a, c, 0x88);
        s[j + 8] = _mm512_shuffle_i32x4(a, c, 0xdd);
        s[j + 4] = _mm512_shuffle_i32x4(b, d, 0x88);
        s[j + 12] = _mm512_shuffle_i32x4(b, d, 0xdd);
    }
    for (int i = 0; i < words; ++i) _mm512_storeu_si512(to + i * ldt, s[i]);
#else
    for (int i = 0; i < words; ++i)
        for (int j = 0; j < 16; ++j) to[i * ldt + j] = from[j] ? from[j][at + i] : 0;
#endif
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
