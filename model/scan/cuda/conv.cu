// Depthwise causal convolution + bias + SiLU: see model/scan/conv.py. Its anti-causal direction is
// the causal one over rows in the opposite order: the launcher passes negative strides.
//
// A lane owns V neighbouring channels and walks a segment of tokens, GROUP at a time. While a group
// is computed, the next one is being loaded. A ring of registers holds the tokens that the taps look
// back at.
// Macros: TYPE of the activations, PARAMETER of weight and bias, WIDTH (V) and TAPS.
#include "vector.cuh"

constexpr int V = WIDTH, K = TAPS, WARPS = 4;
constexpr int GROUP = K < 4 ? 4 : K;  // so that the compiler knows indices into the rings

// A (B, D, L) tensor whose channels are neighbours. Repeated by _Rows in conv.py.
struct Rows {
  TYPE* data;
  long long batch, token;
};

// Repeated by _Job in conv.py.
struct Convolution {
  Rows x, out;  // out: the result, or the gradient of x
  Rows dout;
  const PARAMETER *weight, *bias;  // (D, K), (D,) or null
  float* partials;                 // (blocks along tokens, D * K + D): gradients of weight and bias
  int batch, channels, length;
  int segments, groups;  // segments of a sample, groups of tokens that are walked in each
};

// What a lane works on: the channels from `channel` and the tokens from `begin` of one sample.
struct Place {
  int channel, sample, begin, row;  // row: of the partials
  bool exists;
};
__device__ __forceinline__ Place place(const Convolution& q, int tokens) {
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int columns = (q.channels + 32 * V - 1) / (32 * V);
  int column = blockIdx.x % columns, row = blockIdx.x / columns;
  int segment = row * WARPS + warp, channel = (column * 32 + lane) * V;
  bool exists = segment < q.batch * q.segments && channel < q.channels;
  return {channel, segment / q.segments, segment % q.segments * tokens, row, exists};
}

struct Filter {
  float taps[K][V], bias[V];
  __device__ __forceinline__ Filter(const Convolution& q, const Place& at) {
#pragma unroll
    for (int v = 0; v < V; v++) {
      long long channel = at.channel + v;
      bias[v] = at.exists && q.bias ? value(q.bias[channel]) : 0.f;
#pragma unroll
      for (int k = 0; k < K; k++)
        taps[k][v] = at.exists ? value(q.weight[channel * K + k]) : 0.f;
    }
  }
  // The convolution at the token that lies at `j` in the ring of x.
  __device__ __forceinline__ float at(const float (&x)[GROUP][V], int j, int v) const {
    float y = bias[v];
#pragma unroll
    for (int k = 0; k < K; k++) y = fmaf(taps[k][v], x[(j + k + 1 - K + GROUP) % GROUP][v], y);
    return y;
  }
};

// Reads tokens in order, a group at a time. Tokens outside the sequence are zero.
struct Reader {
  const TYPE* from;
  long long stride;
  int token, end;  // end: 0 where the channels do not exist
  Vector<TYPE, V> tokens[GROUP];

  __device__ __forceinline__ Reader(const Rows& rows, const Place& at, int begin, int length)
      : from(rows.data + at.sample * rows.batch + at.channel + begin * rows.token),
        stride(rows.token),
        token(begin),
        end(at.exists ? length : 0) {}
  __device__ __forceinline__ void read() {
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
      tokens[j] = fetch<V>(from, token >= 0 && token < end);
      from += stride, token++;
    }
  }
};

// The ring of x as it is before the token at.begin.
__device__ __forceinline__ void look_back(const Convolution& q, const Place& at, float (&x)[GROUP][V]) {
  Reader before(q.x, at, at.begin - GROUP, q.length);
  before.read();
#pragma unroll
  for (int j = 0; j < GROUP; j++) before.tokens[j].unpack(x[j]);
}

KERNEL(conv_forward, Convolution, 32 * WARPS, 4) {
  Place at = place(q, q.groups * GROUP);
  if (!at.exists) return;
  Filter filter(q, at);
  float x[GROUP][V];
  look_back(q, at, x);
  Reader next(q.x, at, at.begin, q.length);
  next.read();
  TYPE* out = q.out.data + at.sample * q.out.batch + at.channel + at.begin * q.out.token;
#pragma unroll 1
  for (int g = 0, token = at.begin; g < q.groups; g++) {
    Reader now = next;
    if (g + 1 < q.groups) next.read();
#pragma unroll
    for (int j = 0; j < GROUP; j++, token++, out += q.out.token) {
      now.tokens[j].unpack(x[j]);
      float result[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        float y = filter.at(x, j, v);
        result[v] = y * sigmoid(y);
      }
      if (token < q.length) put<V>(out, result);
    }
  }
}

// Adds up the warps' sums in the order of the warps and writes them as a row of the partials.
__device__ __forceinline__ void write_partials(
    const Convolution& q, const Place& at, const float (&dtaps)[K][V], const float (&dbias)[V]) {
  SHARED_MEMORY(memory);
  constexpr int SUMS = (K + 1) * V;  // of a lane
  float* sums = reinterpret_cast<float*>(memory);  // (WARPS, SUMS, 32)
  float* mine = sums + threadIdx.x / 32 * SUMS * 32 + threadIdx.x % 32;
#pragma unroll
  for (int v = 0; v < V; v++) {
#pragma unroll
    for (int k = 0; k < K; k++) mine[(v * K + k) * 32] = dtaps[k][v];
    mine[(K * V + v) * 32] = dbias[v];
  }
  __syncthreads();
  int columns = (q.channels + 32 * V - 1) / (32 * V);
  int first = blockIdx.x % columns * 32 * V;  // channel of the block
  float* row = q.partials + (long long)at.row * q.channels * (K + 1);
  for (int i = threadIdx.x; i < SUMS * 32; i += 32 * WARPS) {
    float sum = 0.f;
#pragma unroll
    for (int warp = 0; warp < WARPS; warp++) sum += sums[warp * SUMS * 32 + i];
    int lane = i % 32, which = i / 32, channel = first + lane * V;
    if (channel >= q.channels) continue;
    bool is_tap = which < K * V;
    row[is_tap ? channel * K + which : q.channels * K + channel + which - K * V] = sum;
  }
}

// The walk goes K - 1 tokens beyond the segment, whose last tokens need the gradients there.
KERNEL(conv_backward, Convolution, 32 * WARPS, 4) {
  int owned = q.groups * GROUP - (K - 1);
  Place at = place(q, owned);
  Filter filter(q, at);
  float x[GROUP][V], dy[GROUP][V], dtaps[K][V], dbias[V];
#pragma unroll
  for (int v = 0; v < V; v++) {
    dbias[v] = 0.f;
#pragma unroll
    for (int k = 0; k < K; k++) dtaps[k][v] = 0.f;
#pragma unroll
    for (int j = 0; j < GROUP; j++) dy[j][v] = 0.f;
  }
  look_back(q, at, x);
  Reader next(q.x, at, at.begin, q.length), dnext(q.dout, at, at.begin, q.length);
  next.read();
  dnext.read();
  int token = at.begin - (K - 1);  // the token whose gradient is complete
  TYPE* dx = q.out.data + at.sample * q.out.batch + at.channel + token * q.out.token;
#pragma unroll 1
  for (int g = 0; g < q.groups; g++) {
    Reader now = next, dnow = dnext;
    if (g + 1 < q.groups) {
      next.read();
      dnext.read();
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++, token++, dx += q.out.token) {
      now.tokens[j].unpack(x[j]);
      dnow.tokens[j].unpack(dy[j]);
      bool is_owned = j < GROUP - (K - 1) || g + 1 < q.groups;
      float result[V];
#pragma unroll
      for (int v = 0; v < V; v++) {
        float y = filter.at(x, j, v), gate = sigmoid(y);
        dy[j][v] *= gate * fmaf(y, 1.f - gate, 1.f);
        float counted = is_owned ? dy[j][v] : 0.f;
        dbias[v] += counted;
        result[v] = 0.f;
#pragma unroll
        for (int k = 0; k < K; k++) {
          dtaps[k][v] = fmaf(counted, x[(j + k + 1 - K + GROUP) % GROUP][v], dtaps[k][v]);
          result[v] = fmaf(filter.taps[k][v], dy[(j - k + GROUP) % GROUP][v], result[v]);
        }
      }
      if (at.exists && token >= at.begin && token < q.length) put<V>(dx, result);
    }
  }
  write_partials(q, at, dtaps, dbias);
}
