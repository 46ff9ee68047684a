// Types, loads and stores, small functions and sums over lanes that all kernels share.
#pragma once
#ifndef CUDA_ON_HOST
#include "device.cuh"
#endif

constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// Element types of activations in memory. Arithmetic is in float32.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
__device__ __forceinline__ float value(float x) { return x; }
__device__ __forceinline__ float value(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
__device__ __forceinline__ float value(f16 x) { return f16_value(x.bits); }
__device__ __forceinline__ void store(float* to, float x) { *to = x; }
__device__ __forceinline__ void store(bf16* to, float x) { to->bits = bf16_bits(x); }
__device__ __forceinline__ void store(f16* to, float x) { to->bits = f16_bits(x); }
// The tokens of one channel of one sample, `step` bytes apart.
template <class T> struct Column {
  const char* base;
  uint32_t step;
  __device__ __forceinline__ T* at(uint32_t token) const { return (T*)address(base, token, step); }
};

// A (B, D, L) tensor of any strides, in bytes. Repeated by Strided in launch.py.
template <class T> struct Strided {
  T* data;
  long long batch;
  uint32_t channel, token;
  __device__ __forceinline__ Column<T> column(int b, uint32_t d) const {
    return {address((const char*)data + b * batch, d, channel), token};
  }
  __device__ __forceinline__ T* at(int b, uint32_t d, uint32_t t) const { return column(b, d).at(t); }
};
// The tokens of a channel in a dense float32 tensor (B, L, D).
__device__ __forceinline__ Column<float> dense_column(float* from, uint32_t channels) {
  return {(const char*)from, channels * 4};
}

__device__ __forceinline__ float sigmoid(float x) { return rcp(1.f + ex2(-x * LOG2E)); }

// log(1 + exp(x)). Beyond 20 it is x itself, as in torch; where 1 + exp(x) would round, a series.
__device__ __forceinline__ float softplus(float x) {
  float e = ex2(fminf(x, 20.f) * LOG2E);
  float large = LN2 * lg2(1.f + e);
  float small = e * (1.f + e * (-0.5f + e * (0.33333333f - 0.25f * e)));
  float y = e < 0.03f ? small : large;
  return x > 20.f ? x : y;
}

__device__ __forceinline__ float from_lane_xor(float x, int mask) {
  return __shfl_xor_sync(ALL_LANES, x, mask);
}

// The sum over groups of `Lanes` neighbouring lanes, in every lane.
template <int Lanes> __device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) x += from_lane_xor(x, step);
  return x;
}

// Sums N values over `Lanes` lanes that are `Stride` apart (both powers of two) for about N
// shuffles. Of the lanes in such a group, the one at place i is left with its share of the sums:
// v[0 .. N / Lanes) are those of the values i * N / Lanes and on; with more lanes than values,
// v[0] is that of the value i * N / Lanes, which Lanes / N neighbours share.
template <int Lanes, int Stride, int N>
__device__ __forceinline__ void spread_sum(float (&v)[N], int lane) {
  int left = N;
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) {
    if (left == 1) {
      v[0] += from_lane_xor(v[0], step * Stride);
      continue;
    }
    left /= 2;
    bool upper = lane & (step * Stride);
#pragma unroll
    for (int i = 0; i < N / 2; i++)
      if (i < left) {
        float keep = upper ? v[i + left] : v[i], send = upper ? v[i] : v[i + left];
        v[i] = keep + from_lane_xor(send, step * Stride);
      }
  }
}
