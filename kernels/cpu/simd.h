// Sixteen float or int lanes with one meaning on every machine: AVX512 where it is there, else
// compiler vectors. Every operation rounds once and in a stated order, so a lane's result does not
// depend on the instruction set's width or on the compiler's taste (built with -ffp-contract=off).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define BL_AVX512 1
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif
#if defined(BL_AVX512) && defined(__AVX512VNNI__)
#define BL_VNNI 1
#endif
#if defined(BL_AVX512) && defined(__AVX512BF16__)
#define BL_BF16 1
#endif
#define BL_INLINE static inline __attribute__((always_inline))

namespace bl {

constexpr int LANES = 16;
constexpr int BLOCK = 32;

#if defined(BL_AVX512)
typedef __m512 f32x16;
typedef __m512i i32x16;
BL_INLINE f32x16 load(const float* p) { return _mm512_loadu_ps(p); }
BL_INLINE void store(float* p, f32x16 v) { _mm512_storeu_ps(p, v); }
BL_INLINE f32x16 load_n(const float* p, int n) {
    return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
BL_INLINE void store_n(float* p, f32x16 v, int n) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
BL_INLINE f32x16 set1(float x) { return _mm512_set1_ps(x); }
BL_INLINE i32x16 set1i(int32_t x) { return _mm512_set1_epi32(x); }
BL_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return _mm512_fmadd_ps(a, b, c); }
BL_INLINE f32x16 add(f32x16 a, f32x16 b) { return _mm512_add_ps(a, b); }
BL_INLINE f32x16 sub(f32x16 a, f32x16 b) { return _mm512_sub_ps(a, b); }
BL_INLINE f32x16 mul(f32x16 a, f32x16 b) { return _mm512_mul_ps(a, b); }
BL_INLINE f32x16 div(f32x16 a, f32x16 b) { return _mm512_div_ps(a, b); }
BL_INLINE f32x16 max(f32x16 a, f32x16 b) { return _mm512_max_ps(a, b); }
BL_INLINE f32x16 min(f32x16 a, f32x16 b) { return _mm512_min_ps(a, b); }
BL_INLINE f32x16 abs(f32x16 a) { return _mm512_abs_ps(a); }
BL_INLINE f32x16 to_float(i32x16 a) { return _mm512_cvtepi32_ps(a); }
BL_INLINE i32x16 to_int(f32x16 a) { return _mm512_cvtps_epi32(a); }
BL_INLINE i32x16 addi(i32x16 a, i32x16 b) { return _mm512_add_epi32(a, b); }
BL_INLINE i32x16 shift_left(i32x16 a, int n) { return _mm512_slli_epi32(a, n); }
BL_INLINE f32x16 as_float(i32x16 a) { return _mm512_castsi512_ps(a); }
BL_INLINE i32x16 as_int(f32x16 a) { return _mm512_castps_si512(a); }
BL_INLINE i32x16 loadi(const void* p) { return _mm512_loadu_si512(p); }
BL_INLINE void storei(void* p, i32x16 v) { _mm512_storeu_si512(p, v); }
BL_INLINE i32x16 andi(i32x16 a, i32x16 b) { return _mm512_and_si512(a, b); }
BL_INLINE i32x16 shift_right4(i32x16 a) { return _mm512_srli_epi16(a, 4); }
BL_INLINE f32x16 load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
BL_INLINE void store_i8(int8_t* p, i32x16 v) {
    _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(v));
}
// Lanes where a < b take x, the others y.
BL_INLINE f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
#else
typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
BL_INLINE f32x16 load(const float* p) { f32x16 v; memcpy(&v, p, 64); return v; }
BL_INLINE void store(float* p, f32x16 v) { memcpy(p, &v, 64); }
BL_INLINE f32x16 load_n(const float* p, int n) { f32x16 v = {}; memcpy(&v, p, 4 * n); return v; }
BL_INLINE void store_n(float* p, f32x16 v, int n) { memcpy(p, &v, 4 * n); }
BL_INLINE f32x16 set1(float x) { f32x16 v = {}; return v + x; }
BL_INLINE i32x16 set1i(int32_t x) { i32x16 v = {}; return v + x; }
BL_INLINE f32x16 add(f32x16 a, f32x16 b) { return a + b; }
BL_INLINE f32x16 sub(f32x16 a, f32x16 b) { return a - b; }
BL_INLINE f32x16 mul(f32x16 a, f32x16 b) { return a * b; }
BL_INLINE f32x16 div(f32x16 a, f32x16 b) { return a / b; }
BL_INLINE f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
BL_INLINE f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }
BL_INLINE f32x16 as_float(i32x16 a) { return (f32x16)a; }
BL_INLINE i32x16 as_int(f32x16 a) { return (i32x16)a; }
BL_INLINE f32x16 abs(f32x16 a) { return (f32x16)((i32x16)a & 0x7fffffff); }
BL_INLINE f32x16 to_float(i32x16 a) { return __builtin_convertvector(a, f32x16); }
BL_INLINE i32x16 to_int(f32x16 a) {  // to nearest, ties to even, |a| < 2^22
    return as_int(a + 12582912.0f) - 0x4B400000;
}
BL_INLINE i32x16 addi(i32x16 a, i32x16 b) { return a + b; }
BL_INLINE i32x16 shift_left(i32x16 a, int n) { return a << n; }
BL_INLINE i32x16 loadi(const void* p) { i32x16 v; memcpy(&v, p, 64); return v; }
BL_INLINE void storei(void* p, i32x16 v) { memcpy(p, &v, 64); }
BL_INLINE i32x16 andi(i32x16 a, i32x16 b) { return a & b; }
BL_INLINE i32x16 shift_right4(i32x16 a) {
    typedef uint16_t u16x32 __attribute__((vector_size(64)));
    return (i32x16)((u16x32)a >> 4);
}
BL_INLINE f32x16 select_lt(f32x16 a, f32x16 b, f32x16 x, f32x16 y) { return a < b ? x : y; }
BL_INLINE void store_i8(int8_t* p, i32x16 v) {
    for (int i = 0; i < 16; ++i) p[i] = int8_t(v[i]);
}
#if defined(__FMA__)
BL_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    union U { f32x16 v; __m256 h[2]; } x{a}, y{b}, z{c}, r;
    r.h[0] = _mm256_fmadd_ps(x.h[0], y.h[0], z.h[0]);
    r.h[1] = _mm256_fmadd_ps(x.h[1], y.h[1], z.h[1]);
    return r.v;
}
#elif defined(__aarch64__)
BL_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    union U { f32x16 v; float32x4_t q[4]; } x{a}, y{b}, z{c}, r;
    for (int i = 0; i < 4; ++i) r.q[i] = vfmaq_f32(z.q[i], x.q[i], y.q[i]);
    return r.v;
}
#else  // No fused instruction: two roundings, the same in every kernel of this build.
BL_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return a * b + c; }
#endif
BL_INLINE float half_to_float(uint16_t h) {
    uint32_t sign = uint32_t(h & 0x8000) << 16, bits = uint32_t(h & 0x7fff) << 13;
    float f;
    if ((h & 0x7c00) == 0x7c00) {
        bits |= 0x7f800000;
    } else {  // Multiplying moves the exponent's bias and normalises subnormals.
        memcpy(&f, &bits, 4);
        f *= 5.192296858534828e33f;
        memcpy(&bits, &f, 4);
    }
    bits |= sign;
    memcpy(&f, &bits, 4);
    return f;
}
BL_INLINE f32x16 load_f16(const uint16_t* p) {
    f32x16 v;
    for (int i = 0; i < 16; ++i) v[i] = half_to_float(p[i]);
    return v;
}
#endif

BL_INLINE float scalar_f16(const uint16_t* p) {
    uint16_t pad[16] = {*p};
    float out[16];
    store(out, load_f16(pad));
    return out[0];
}

// acc + sum over 4 bytes of (unsigned) w * (signed) a, per lane; a is the same for all lanes.
BL_INLINE i32x16 dot4(i32x16 acc, i32x16 w, int32_t a) {
#if defined(BL_VNNI)
    return _mm512_dpbusd_epi32(acc, w, _mm512_set1_epi32(a));
#elif defined(__AVX2__)
    // maddubs saturates at 16 bits, so the top bit of w goes a way of its own.
    const __m256i av = _mm256_set1_epi32(a), one = _mm256_set1_epi16(1);
    union U { i32x16 v; __m256i h[2]; } x{w}, r{acc};
    for (int i = 0; i < 2; ++i) {
        __m256i low = _mm256_and_si256(x.h[i], _mm256_set1_epi8(127));
        __m256i top = _mm256_and_si256(_mm256_srli_epi16(x.h[i], 7), one);
        top = _mm256_or_si256(top, _mm256_and_si256(_mm256_srli_epi16(x.h[i], 7),
                                                    _mm256_set1_epi16(0x100)));
        __m256i s = _mm256_madd_epi16(_mm256_maddubs_epi16(low, av), one);
        __m256i t = _mm256_madd_epi16(_mm256_maddubs_epi16(top, av), one);
        r.h[i] = _mm256_add_epi32(r.h[i], _mm256_add_epi32(s, _mm256_slli_epi32(t, 7)));
    }
    return r.v;
#else
    int8_t b[4];
    memcpy(b, &a, 4);
    for (int i = 0; i < 4; ++i) acc += ((w >> (8 * i)) & 255) * b[i];
    return acc;
#endif
}

// Sums and maxima over lanes in one fixed tree (halves are added, four times).
#if defined(BL_AVX512)
BL_INLINE float reduce_add(f32x16 v) { return _mm512_reduce_add_ps(v); }
BL_INLINE float reduce_max(f32x16 v) { return _mm512_reduce_max_ps(v); }
BL_INLINE int32_t reduce_addi(i32x16 v) { return _mm512_reduce_add_epi32(v); }
#else
BL_INLINE float reduce_add(f32x16 v) {
    float x[16];
    store(x, v);
    for (int w = 8; w; w >>= 1)
        for (int i = 0; i < w; ++i) x[i] += x[i + w];
    return x[0];
}
BL_INLINE float reduce_max(f32x16 v) {
    float x[16];
    store(x, v);
    for (int w = 8; w; w >>= 1)
        for (int i = 0; i < w; ++i) x[i] = x[i] > x[i + w] ? x[i] : x[i + w];
    return x[0];
}
BL_INLINE int32_t reduce_addi(i32x16 v) {
    int32_t x[16], s = 0;
    storei(x, v);
    for (int i = 0; i < 16; ++i) s += x[i];
    return s;
}
#endif

// e^x to about 1 ulp for x <= 88 (Cody and Waite's reduction, minimax polynomial); 0 below -87.
BL_INLINE f32x16 exp(f32x16 x) {
    const f32x16 low = set1(-87.0f);
    f32x16 y = min(max(x, low), set1(88.0f));
    f32x16 n = sub(add(mul(y, set1(1.44269504088896341f)), set1(12582912.0f)), set1(12582912.0f));
    f32x16 r = fma(n, set1(-0.693359375f), y);
    r = fma(n, set1(2.12194440e-4f), r);
    f32x16 p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    f32x16 scale = as_float(shift_left(addi(to_int(n), set1i(127)), 23));
    return select_lt(x, low, set1(0.0f), mul(p, scale));
}

// 2^x to about 1 ulp for x <= 127 (polynomial of the fraction in [-1/2, 1/2]); 0 below -125.5, since
// a result that is no normal number takes a processor 50 times as long as another, and hidden keys
// are such.
BL_INLINE f32x16 exp2(f32x16 x) {
    f32x16 y = max(x, set1(-160.0f));
#if defined(BL_AVX512)
    f32x16 f = _mm512_reduce_ps(y, 0), n = y;
    n = sub(y, f);
#else
    f32x16 n = sub(add(y, set1(12582912.0f)), set1(12582912.0f)), f = sub(y, n);
#endif
    f32x16 p = set1(1.535336188319500e-4f);
    p = fma(p, f, set1(1.339887440266574e-3f));
    p = fma(p, f, set1(9.618437357674640e-3f));
    p = fma(p, f, set1(5.550332471162809e-2f));
    p = fma(p, f, set1(2.402264791363012e-1f));
    p = fma(p, f, set1(6.931472028550421e-1f));
    p = fma(p, f, set1(1.0f));
    const f32x16 least = set1(-125.0f);
#if defined(BL_AVX512)
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(n, least, _CMP_NLT_UQ), p, n);
#else
    f32x16 scale = as_float(shift_left(addi(to_int(max(n, least)), set1i(127)), 23));
    return select_lt(n, least, set1(0.0f), mul(p, scale));
#endif
}

// bfloat16: the upper half of a float.
BL_INLINE float from_bf16(uint16_t h) {
    uint32_t bits = uint32_t(h) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
BL_INLINE uint16_t to_bf16(float f) {  // to nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t((bits >> 16) | 64);
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
BL_INLINE f32x16 load_bf16(const uint16_t* p) {
#if defined(BL_AVX512)
    return as_float(shift_left(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16));
#else
    f32x16 v;
    for (int i = 0; i < LANES; ++i) v[i] = from_bf16(p[i]);
    return v;
#endif
}
// acc + w[0] * a[0] + w[1] * a[1] per lane on pairs of bfloat16; a is the same for all lanes.
BL_INLINE f32x16 dot2(f32x16 acc, i32x16 w, int32_t a) {
#if defined(BL_BF16)
    return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(a));
#else
    const f32x16 low = set1(from_bf16(uint16_t(a)));
    const f32x16 high = set1(from_bf16(uint16_t(uint32_t(a) >> 16)));
    acc = fma(as_float(andi(w, set1i(int32_t(0xffff0000u)))), high, acc);
    return fma(as_float(shift_left(w, 16)), low, acc);
#endif
}

BL_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }
// Into the second-level cache: for what comes so late that the first has better to hold.
BL_INLINE void prefetch_near(const void* p) { __builtin_prefetch(p, 0, 2); }
BL_INLINE void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

}  // namespace bl
