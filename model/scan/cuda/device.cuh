// Everything that the kernels need of a GPU beyond plain C++. tests/model/scan/cuda_host defines the
// same names for the CPU, so that the unchanged kernels run where there is no GPU.
#pragma once

using uint32_t = unsigned int;
using uint16_t = unsigned short;

// A kernel takes one structure by value. `blocks` per multiprocessor bounds its registers.
#define KERNEL(name, Parameters, threads, blocks)                    \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name( \
      const __grid_constant__ Parameters q)
// The block's dynamic shared memory as bytes.
#define SHARED_MEMORY(name) extern __shared__ __align__(16) char name[]

__device__ __forceinline__ float ex2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float lg2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float rcp(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float inverse_sqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint16_t bf16_bits(float x) {
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ uint16_t f16_bits(float x) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
// Two values as one word, the first in its lower half.
__device__ __forceinline__ uint32_t bf16_pair(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ __forceinline__ uint32_t f16_pair(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ __forceinline__ float f16_value(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}
// base + index * step, in bytes, an address of global memory. Unsigned arithmetic makes this one
// instruction.
__device__ __forceinline__ const char* address(const char* base, uint32_t index, uint32_t step) {
  const char* at = base + (unsigned long long)index * step;
  __builtin_assume(__isGlobal(at));
  return at;
}
// Brings the line of an address to the L2 cache; the address must be readable.
__device__ __forceinline__ void prefetch(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}
