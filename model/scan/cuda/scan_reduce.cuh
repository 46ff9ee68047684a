// Adds up partial sums: every small gradient of a scan in one launch.
//
// A job fills a tensor of up to four axes. Each element is the sum over two more axes of a float32
// tensor, taken in a fixed order.
#pragma once
#include "common.cuh"

struct Axis {
  long long size, from, to;  // strides, in elements
};
struct Job {
  const float* from;
  void* to;
  Axis axes[4];              // the last one is the fastest
  long long outer, outer_stride, inner, inner_stride;  // the sum
  int half;                  // whether `to` is of type ACTIVATION, not float32
  int first_block;
};
constexpr int MAX_JOBS = 10, REDUCE_THREADS = 128;
struct Reduction {
  Job jobs[MAX_JOBS];
  int count;
};

__device__ __forceinline__ void reduce(const Reduction& q) {
  int j = 0;
  while (j + 1 < q.count && int(blockIdx.x) >= q.jobs[j + 1].first_block) j++;
  const Job& job = q.jobs[j];
  long long index = (long long)(int(blockIdx.x) - job.first_block) * REDUCE_THREADS + threadIdx.x;
  const float* from = job.from;
  long long to = 0;
#pragma unroll
  for (int i = 3; i >= 0; i--) {
    const Axis& axis = job.axes[i];
    long long place = index % axis.size;
    index /= axis.size;
    from += place * axis.from;
    to += place * axis.to;
  }
  if (index) return;
  float sum = 0.f;
  for (long long o = 0; o < job.outer; o++) {
    const float* at = from + o * job.outer_stride;
#pragma unroll 4
    for (long long i = 0; i < job.inner; i++) sum += at[i * job.inner_stride];
  }
  if (job.half)
    store((Act*)job.to + to, sum);
  else
    ((float*)job.to)[to] = sum;
}
