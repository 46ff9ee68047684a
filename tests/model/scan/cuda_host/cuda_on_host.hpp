// Runs a CUDA kernel's blocks on a CPU, one fiber per thread: for numerics, not for speed or races.
// Threads of a warp meet at every shuffle and __syncwarp, those of a block at __syncthreads. Shared
// memory starts as NaN in every block. A kernel becomes an extern "C" function of its parameters.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define CUDA_ON_HOST 1
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __align__(n) alignas(n)
#define SHARED_MEMORY(name) char* name = host::shared
#define KERNEL(name, Parameters, threads, blocks)                                                  \
  static void name##_body(const Parameters& q);                                                    \
  extern "C" void name(const void* parameters, unsigned grid, unsigned block, unsigned shared) {   \
    Parameters q;                                                                                  \
    memcpy(&q, parameters, sizeof q);                                                              \
    if (block > (threads)) host::fail(#name ": more threads than its launch bounds");              \
    host::launch(grid, block, shared, [&] { name##_body(q); });                                    \
  }                                                                                                \
  static void name##_body(const Parameters& q)

struct uint3 {
  unsigned x, y, z;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float __uint_as_float(uint32_t v) {
  float f;
  memcpy(&f, &v, 4);
  return f;
}
inline uint32_t __float_as_uint(float v) {
  uint32_t u;
  memcpy(&u, &v, 4);
  return u;
}
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
inline uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {
constexpr int kWarp = 32, kStack = 1 << 16, kShared = 232448;
alignas(128) inline char shared[kShared];
[[noreturn]] inline void fail(const char* why) {
  fprintf(stderr, "cuda_on_host: %s\n", why);
  abort();
}
struct Meeting {
  int arrived = 0;
  long generation = 0;
};
struct Fiber {
  ucontext_t start;
  jmp_buf at;
  std::vector<char> stack;
  bool started = false, done = false;
};
inline std::vector<Fiber> fibers;  // kept between launches for their stacks
inline std::vector<Meeting> warps;
inline std::vector<std::vector<uint64_t>> slots[2];
inline Meeting block;
inline jmp_buf scheduler;
inline int current, count;
inline const std::function<void()>* body;

inline void yield() {
  if (_setjmp(fibers[current].at) == 0) _longjmp(scheduler, 1);
}
inline void meet(Meeting& m, int size) {
  long mine = m.generation;
  if (++m.arrived == size) {
    m.arrived = 0;
    m.generation++;
    return;
  }
  while (m.generation == mine) yield();
}
inline int warp_size(int warp) { return min(kWarp, count - warp * kWarp); }
template <class V> V exchange(V mine, int source) {
  int warp = current / kWarp, lane = current % kWarp;
  auto& slot = slots[warps[warp].generation & 1][warp];
  memcpy(&slot[lane], &mine, sizeof mine);
  meet(warps[warp], warp_size(warp));
  V got;
  memcpy(&got, &slot[source], sizeof got);
  return got;
}
inline void entry() {
  (*body)();
  fibers[current].done = true;
  _longjmp(scheduler, 1);
}
inline void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}
inline void run_block(unsigned block_threads) {
  count = int(block_threads);
  if (int(fibers.size()) < count) fibers.resize(count);
  warps.assign((count + kWarp - 1) / kWarp, {});
  block = {};
  for (auto& s : slots) s.assign(warps.size(), std::vector<uint64_t>(kWarp));
  for (int i = 0; i < count; i++) {
    Fiber& fiber = fibers[i];
    fiber.started = fiber.done = false;
    fiber.stack.resize(kStack);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.data();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, entry, 0);
  }
  for (int left = count; left;) {
    int before = left;
    long moved = block.generation;
    for (auto& warp : warps) moved += warp.generation;
    for (current = 0; current < count; current++)
      if (!fibers[current].done) {
        threadIdx = {unsigned(current), 0, 0};
        resume(fibers[current]);
        left -= fibers[current].done;
      }
    for (auto& warp : warps) moved -= warp.generation;
    if (left == before && moved == block.generation) fail("threads wait for each other for ever");
  }
}
// Runs `kernel` for every block of the grid, one after the other.
inline void launch(
    unsigned grid, unsigned block_threads, unsigned bytes, const std::function<void()>& kernel) {
  if (bytes > kShared) fail("more shared memory than a block can have");
  gridDim = {grid, 1, 1};
  blockDim = {block_threads, 1, 1};
  body = &kernel;
  uint32_t nan = 0x7fc00000;
  for (unsigned index = 0; index < grid; index++) {
    blockIdx = {index, 0, 0};
    for (size_t i = 0; i + 4 <= bytes; i += 4) memcpy(shared + i, &nan, 4);
    run_block(block_threads);
  }
}
}  // namespace host

inline void __syncwarp(uint32_t = 0) {
  int warp = host::current / host::kWarp;
  host::meet(host::warps[warp], host::warp_size(warp));
}
inline void __syncthreads() { host::meet(host::block, host::count); }
template <class V> V __shfl_xor_sync(uint32_t, V v, int mask) {
  return host::exchange(v, (host::current % host::kWarp) ^ mask);
}
template <class V> V __shfl_sync(uint32_t, V v, int source, int width = 32) {
  int lane = host::current % host::kWarp;
  return host::exchange(v, (lane & ~(width - 1)) | (source & (width - 1)));
}

// What device.cuh writes as PTX.
inline float ex2(float x) { return exp2f(x); }
inline float lg2(float x) { return log2f(x); }
inline float rcp(float x) { return 1.f / x; }
inline float inverse_sqrt(float x) { return 1.f / sqrtf(x); }
inline uint16_t bf16_bits(float v) {
  uint32_t u = __float_as_uint(v);
  return v != v ? 0x7fff : (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
inline uint16_t f16_bits(float v) {
  _Float16 h = _Float16(v);
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}
inline uint32_t bf16_pair(float low, float high) {
  return bf16_bits(low) | uint32_t(bf16_bits(high)) << 16;
}
inline uint32_t f16_pair(float low, float high) {
  return f16_bits(low) | uint32_t(f16_bits(high)) << 16;
}
inline float f16_value(uint16_t bits) {
  _Float16 h;
  memcpy(&h, &bits, 2);
  return float(h);
}
inline const char* address(const char* base, uint32_t index, uint32_t step) {
  return base + (unsigned long long)index * step;
}
inline void prefetch(const void* address) { (void)*(const volatile char*)address; }
