// Sixteen float lanes in GCC/Clang vector extensions, which any instruction set can run.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

constexpr int LANES = 16;
typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t IVec __attribute__((vector_size(LANES * sizeof(int32_t))));

#define INLINE static inline __attribute__((always_inline))

constexpr float LOG2E = 1.44269504088896341f;
constexpr float LN2 = 0.69314718055994531f;

INLINE Vec splat(float value) { return Vec{} + value; }

INLINE Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

INLINE void store(float* to, Vec value) { std::memcpy(to, &value, sizeof value); }

// A cast between vectors of one size keeps the bits.
INLINE Vec as_float(IVec bits) { return (Vec)bits; }
INLINE IVec as_bits(Vec value) { return (IVec)value; }

// 2^x to 1.3 ulp: 2^r by a minimax polynomial on [-1/2, 1/2], scaled by 2^(x - r).
INLINE Vec exp2v(Vec x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    const Vec r = _mm512_reduce_ps(x, 0x08);  // x - nearest integer
    const Vec whole = x - r;
#else
    // Outside this range the result is 0 or infinity to float accuracy. NaN passes through.
    x = splat(-126.0f) > x ? splat(-126.0f) : x;
    x = splat(127.499f) < x ? splat(127.499f) : x;
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Vec shifted = x + magic;
    const Vec whole = shifted - magic;
    const Vec r = x - whole;
#endif
    Vec p = splat(1.326472690798524e-3f);
    p = p * r + 9.671512660415148e-3f;
    p = p * r + 5.550733744213474e-2f;
    p = p * r + 2.402224208492242e-1f;
    p = p * r + 6.931469775984944e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    return _mm512_scalef_ps(p, whole);
#else
    return as_float(as_bits(p) + (as_bits(shifted) << 23));
#endif
}

INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp2v(-x * LOG2E)); }

// log(1 + e) for e = exp(x); x itself above 20, as in PyTorch.
INLINE Vec softplus(Vec x, Vec e) {
    const Vec u = 1.0f + e;
    // 1 + e = m 2^k with m in [sqrt(1/2), sqrt(2)); for k = 0, m - 1 is e without rounding.
    const IVec k = (as_bits(u) - 0x3f3504f3) >> 23;
    const Vec m = as_float(as_bits(u) - (k << 23));
    const Vec f = k == 0 ? e : m - 1.0f;
    const Vec s = f / (2.0f + f), s2 = s * s;  // log(1 + f) = 2 atanh(s)
    Vec series = splat(2.0f / 9);
    series = series * s2 + 2.0f / 7;
    series = series * s2 + 2.0f / 5;
    series = series * s2 + 2.0f / 3;
    series = series * s2 + 2.0f;
    const Vec logarithm = __builtin_convertvector(k, Vec) * LN2 + s * series;
    return x > 20.0f ? x : logarithm;
}

#define SHUFFLE __builtin_shufflevector

INLINE Vec add_pairs(Vec a, Vec b) {  // each quarter: a0+a2, b0+b2, a1+a3, b1+b3
    return SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29) +
           SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}

INLINE Vec add_quads(Vec ab, Vec cd) {  // each quarter: sums of a, b, c, d over it
    return SHUFFLE(ab, cd, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29) +
           SHUFFLE(ab, cd, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}

INLINE Vec add_halves(Vec p, Vec q) {
    return SHUFFLE(p, q, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(p, q, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
}

INLINE Vec add_quarters(Vec pq, Vec rs) {
    return SHUFFLE(pq, rs, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(pq, rs, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
}

// The sums of sixteen vectors over their lanes, as the lanes of one vector.
INLINE Vec sum_lanes(const Vec* v) {
    Vec quads[4];
    for (int i = 0; i < 4; ++i)
        quads[i] = add_quads(add_pairs(v[4 * i], v[4 * i + 1]), add_pairs(v[4 * i + 2], v[4 * i + 3]));
    return add_quarters(add_halves(quads[0], quads[1]), add_halves(quads[2], quads[3]));
}

// Denormals cost a hundred cycles each, so a kernel's threads flush them to zero while they run;
// the destructor restores the thread, since the rest of the process must keep its denormals.
class FlushDenormals {
#if defined(__x86_64__)
    unsigned saved_ = _mm_getcsr();

  public:
    FlushDenormals() { _mm_setcsr(saved_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved_); }
#else
  public:
    FlushDenormals() {}
#endif
};
