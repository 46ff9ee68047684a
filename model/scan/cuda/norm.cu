// Residual add + RMSNorm over contiguous rows: see model/scan/norm.py.
//
// A warp owns a row at a time and keeps it in registers: memory is read and written once. The weight
// comes from the L1 cache for each row. Backward adds up the weight's gradient over a warp's rows.
// Macros: TYPE of the branch, PARAMETER of the weight, WIDTH (elements of a vector), VECTORS (how many
// of a row a lane holds) and BLOCKS (how many a multiprocessor must have registers for).
#include "vector.cuh"

constexpr int V = WIDTH, WARPS = 4;

// Repeated by _Job in norm.py. Tensors are (rows, columns).
struct Norm {
  const TYPE* x;
  const float* residual;  // or null
  const PARAMETER* weight;
  TYPE* normed;
  float* total;
  const TYPE* dnormed;
  const float* dtotal;  // or null: the gradient of the residual stream
  TYPE* dx;             // or null
  float* dresidual;
  float* partials;  // (blocks, columns): gradients of the weight
  float eps, inverse_columns;
  int rows, columns, rows_per_warp;
};

// A lane's part of a row: vectors that are a warp's width apart.
struct Part {
  float at[VECTORS][V];

  template <class T> __device__ __forceinline__ void load(const T* row, int columns) {
    Vector<T, V> raw[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; i++) raw[i] = fetch<V>(row + column(i), column(i) < columns);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) raw[i].unpack(at[i]);
  }
  template <class T> __device__ __forceinline__ void save(T* row, int columns) const {
#pragma unroll
    for (int i = 0; i < VECTORS; i++)
      if (column(i) < columns) put<V>(row + column(i), at[i]);
  }
  static __device__ __forceinline__ int column(int i) {
    return (i * 32 + int(threadIdx.x) % 32) * V;
  }
};

#define FOR_EACH_ELEMENT                 \
  _Pragma("unroll") for (int i = 0; i < VECTORS; i++) \
  _Pragma("unroll") for (int v = 0; v < V; v++)

// The index of the warp in its block, from a shuffle, so that the compiler sees that all lanes agree.
__device__ __forceinline__ int own_warp() {
  return __shfl_sync(ALL_LANES, int(threadIdx.x / 32), 0);
}

KERNEL(norm_forward, Norm, 32 * WARPS, BLOCKS) {
  int first = (blockIdx.x * WARPS + own_warp()) * q.rows_per_warp;
  int end = min(first + q.rows_per_warp, q.rows);
#pragma unroll 1
  for (int r = first; r < end; r++) {
    long long row = (long long)r * q.columns;
    Part total, weight;
    total.load(q.x + row, q.columns);
    if (q.residual) {
      Part residual;
      residual.load(q.residual + row, q.columns);
      FOR_EACH_ELEMENT total.at[i][v] += residual.at[i][v];
    }
    total.save(q.total + row, q.columns);
    float squares = 0.f;
    FOR_EACH_ELEMENT squares = fmaf(total.at[i][v], total.at[i][v], squares);
    float scale = inverse_sqrt(lanes_sum<32>(squares) * q.inverse_columns + q.eps);
    weight.load(q.weight, q.columns);
    FOR_EACH_ELEMENT total.at[i][v] *= scale * weight.at[i][v];
    total.save(q.normed + row, q.columns);
  }
}

KERNEL(norm_backward, Norm, 32 * WARPS, BLOCKS) {
  Part dweight;
  FOR_EACH_ELEMENT dweight.at[i][v] = 0.f;
  int warp = own_warp(), lane = threadIdx.x % 32;
  int first = (blockIdx.x * WARPS + warp) * q.rows_per_warp;
  int end = min(first + q.rows_per_warp, q.rows);
#pragma unroll 1
  for (int r = first; r < end; r++) {
    long long row = (long long)r * q.columns;
    Part total, dnormed, dx, weight;
    weight.load(q.weight, q.columns);
    total.load(q.total + row, q.columns);
    dnormed.load(q.dnormed + row, q.columns);
    if (q.dtotal)
      dx.load(q.dtotal + row, q.columns);
    else
      FOR_EACH_ELEMENT dx.at[i][v] = 0.f;
    float squares = 0.f, products = 0.f;
    FOR_EACH_ELEMENT {
      squares = fmaf(total.at[i][v], total.at[i][v], squares);
      products = fmaf(dnormed.at[i][v] * weight.at[i][v], total.at[i][v], products);
    }
    float scale = inverse_sqrt(lanes_sum<32>(squares) * q.inverse_columns + q.eps);
    float shrink = lanes_sum<32>(products) * q.inverse_columns * scale * scale * scale;
    FOR_EACH_ELEMENT {
      float dunit = dnormed.at[i][v] * scale;
      dweight.at[i][v] = fmaf(dunit, total.at[i][v], dweight.at[i][v]);
      dx.at[i][v] += fmaf(dunit, weight.at[i][v], -total.at[i][v] * shrink);
    }
    dx.save(q.dresidual + row, q.columns);
    if (q.dx) dx.save(q.dx + row, q.columns);
  }
  // The block adds up the warps' sums in the order of the warps.
  SHARED_MEMORY(memory);
  float* sums = reinterpret_cast<float*>(memory);  // (WARPS, VECTORS, V, 32)
  constexpr int HELD = VECTORS * V * 32;
  FOR_EACH_ELEMENT sums[warp * HELD + (i * V + v) * 32 + lane] = dweight.at[i][v];
  __syncthreads();
  float* partial = q.partials + (long long)blockIdx.x * q.columns;
  for (int e = threadIdx.x; e < HELD; e += 32 * WARPS) {
    float sum = 0.f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum += sums[w * HELD + e];
    int column = (e / (32 * V) * 32 + e % 32) * V + e / 32 % V;
    if (column < q.columns) partial[column] = sum;
  }
}
