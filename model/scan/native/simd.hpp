// Float vectors of the CPU's own width, in GCC/Clang vector extensions.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Compilers split vectors that are wider than the registers, and comparisons even by lane.
#if defined(__AVX512F__) && defined(__AVX512DQ__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
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

// 2^x to 1.3 ulp: 2^r by a minimax polynomial on [-1/2, 1/2], scaled by 2^(x - r). Where the caller
// knows that |x| <= EXP2_TAME, two comparisons can be spared.
constexpr float EXP2_TAME = 126.0f;
template <bool TAME = false>
INLINE Vec exp2v(Vec x) {
#if defined(__AVX512F__) && defined(__AVX512DQ__)
    const Vec r = _mm512_reduce_ps(x, 0x08);  // x - nearest integer
    const Vec whole = x - r;
#else
    if (!TAME) {  // beyond these the result is 0 or infinity to float accuracy; NaN passes through
        x = splat(-126.0f) > x ? splat(-126.0f) : x;
        x = splat(127.499f) < x ? splat(127.499f) : x;
    }
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

INLINE Vec magnitude(Vec x) { return as_float(as_bits(x) & 0x7fffffff); }

// log(1 + exp(x)) for tail = exp(-|x|): max(x, 0) + log(1 + tail), where log(1 + tail) = 2 atanh(s)
// is a minimax polynomial, for s = tail / (2 + tail) is in [0, 1/3].
INLINE Vec softplus(Vec x, Vec tail) {
    const Vec s = tail / (2.0f + tail), s2 = s * s;
    Vec series = splat(0.28178334f);
    series = series * s2 + 0.27960603f;
    series = series * s2 + 0.40024910f;
    series = series * s2 + 0.66666315f;
    series = series * s2 + 2.0f;
    return (x > 0.0f ? x : Vec{}) + s * series;
}

// Lane i is one of a, or of b where i has the bit STEP, plus that vector's lane i ^ STEP.
template <int STEP, int... I>
INLINE Vec fold(Vec a, Vec b, std::integer_sequence<int, I...>) {
    return __builtin_shufflevector(a, b, (I & STEP ? LANES + I : I)...) +
           __builtin_shufflevector(a, b, (I & STEP ? LANES + (I ^ STEP) : I ^ STEP)...);
}

// The sums of LANES vectors over their lanes, as the lanes of one vector.
template <int STEP = LANES / 2>
INLINE Vec sum_lanes(const Vec* v) {
    if constexpr (STEP == 0)
        return *v;
    else
        return fold<STEP>(sum_lanes<STEP / 2>(v), sum_lanes<STEP / 2>(v + STEP),
                          std::make_integer_sequence<int, LANES>());
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
