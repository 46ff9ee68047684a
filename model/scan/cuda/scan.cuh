// What the scan's kernels share: their parameters and how they cut a problem into blocks.
//
// ACTIVATION is the type of u, delta, B, C, z and the gradients of these. STATES is the state size
// N padded to a power of two, 8 to 64. The state, the parameters and every sum are float32.
// STATES_GIVEN is 1 for a scan that is given its start or a gradient of its last state, else 0.
//
// A block owns a tile of neighbouring channels of one sample and one segment of its tokens, in both
// directions at once. A direction is a way to count: position p of chunk k is token k * CHUNK + p
// going forward and k * CHUNK + CHUNK - 1 - p in reverse. Chunks are cut alike for both, so that the
// directions can meet: each writes partial results in the half of the segment that it visits first
// and adds the other's to its own in the half that it visits second. Tokens beyond the end have a
// step of zero, which leaves the state as it is; reads for them are clamped to tokens that exist.
#pragma once
#include "common.cuh"

using Act = ACTIVATION;
constexpr int NP = STATES;
constexpr int CHUNK = 16;  // tokens between kept states

// (B, groups, N, L) of any strides, in bytes.
template <class T> struct Rows {
  T* data;
  long long batch, group;
  uint32_t state, token;
};

struct Direction {
  Strided<const Act> u, delta;
  Rows<const Act> B, C;
  const float *A, *D, *bias;  // (D, N), (D), (D); D and bias may be absent
  Strided<Act> du, ddelta;
  int reverse, masked;
};

struct Scan {
  Direction direction[2];
  Strided<const Act> z, dout;
  Strided<Act> out, dz;
  float* y;            // (B, L, D): a partial read-out, then the sum before the gate
  float *du, *ddelta;  // (B, L, D): partial sums of what both directions share
  float* kept;         // (B, directions, chunks, NP / 4, D, 4): the state before each chunk
  float* last;         // (B, directions, D, N): the state after the last token
  const float *start, *dlast;  // (B, D, N) of one direction, or null: the state before the first
  float* dstart;               // token, and the gradients of the last state and of that one
  float *ends, *steps; // (B, directions, segments, NP / 4, D, 4) and (.., D): see `Mode`
  float *dBC;          // (B, directions, tiles, L, 2 NP): partial sums
  float *dA, *dD;      // (B, directions, segments, D, NP) and (.., 2, D): D's, then the bias's
  int batch, channels, length, states, groups;
  int directions, segments, segment_chunks;
  int softplus, first_token, keep_total, shared_u, shared_delta;
};

// The part of the problem that a block owns.
struct Part {
  int tile, b, segment, group, channel, end;  // channels from `channel` to `end`
  int first_chunk, last_chunk;                // of the segment, which excludes the last one
};
template <int Channels> __device__ __forceinline__ Part part_of_block(const Scan& q) {
  Part part;
  int per_group = q.channels / q.groups, tiles = (per_group + Channels - 1) / Channels;
  unsigned index = blockIdx.x, all = tiles * q.groups;
  part.tile = index % all;
  index /= all;
  part.b = index % q.batch;
  part.segment = index / q.batch;
  part.group = part.tile / tiles;
  part.channel = part.group * per_group + part.tile % tiles * Channels;
  part.end = (part.group + 1) * per_group;
  part.first_chunk = part.segment * q.segment_chunks;
  part.last_chunk = min(part.first_chunk + q.segment_chunks, (q.length + CHUNK - 1) / CHUNK);
  return part;
}

// The tokens in the order in which they are visited: position p is token `start + way * p`.
struct Way {
  int start, way;
  __device__ __forceinline__ Way(int chunk, int reverse)
      : start(chunk * CHUNK + (reverse ? CHUNK - 1 : 0)), way(reverse ? -1 : 1) {}
  __device__ __forceinline__ int token(int p) const { return max(start + way * p, 0); }
};

// How the lanes of a warp divide rows of 2 NP numbers per token when they stage or add them up.
constexpr int COLUMNS = 2 * NP < 32 ? 2 * NP : 32, ROWS_AT_ONCE = 32 / COLUMNS;

// B and C of a chunk as float32, a row of 2 NP per position, shared out among some warps.
template <int Warps>
__device__ __forceinline__ void stage_BC(float* rows, const Scan& q, const Direction& d,
                                         const Part& part, Way way, int lane, int warp) {
  constexpr int STEP = Warps * ROWS_AT_ONCE, EACH = (CHUNK + STEP - 1) / STEP;
  constexpr int LOADS = EACH < 8 ? EACH : 8;
  int row = warp * ROWS_AT_ONCE + lane / COLUMNS;
#pragma unroll
  for (int v = lane % COLUMNS; v < 2 * NP; v += COLUMNS) {
    bool is_C = v >= NP;
    const Rows<const Act>& from = is_C ? d.C : d.B;
    int n = is_C ? v - NP : v, last = q.length - 1;
    if (n >= q.states) continue;  // the padding stays zero; see zero_padding
    const char* base = (const char*)from.data + part.b * from.batch + part.group * from.group;
    Column<const Act> values = {address(base, n, from.state), from.token};
#pragma unroll 1
    for (int first = row; first < CHUNK; first += LOADS * STEP) {
      Act raw[LOADS];  // all in flight at once
#pragma unroll
      for (int i = 0; i < LOADS; i++) raw[i] = *values.at(min(way.token(first + i * STEP), last));
#pragma unroll
      for (int i = 0; i < LOADS; i++)
        if (first + i * STEP < CHUNK) rows[(first + i * STEP) * 2 * NP + v] = value(raw[i]);
    }
  }
}
__device__ __forceinline__ void zero_padding(float* rows, const Scan& q, int thread, int threads) {
  if (q.states == NP) return;
  for (int i = thread; i < CHUNK * 2 * NP; i += threads)
    if (i % NP >= q.states) rows[i] = 0.f;
}

// The first token of a masked scan, whose read-out is zero; -1 when the scan has no mask.
__device__ __forceinline__ int unread_token(const Scan& q, const Direction& d) {
  return d.masked ? (d.reverse ? q.length - 1 : 0) : -1;
}

// Index of the four states `four` of a channel in `kept` and `ends`; `row` counts chunks or segments.
__device__ __forceinline__ long long fours(const Scan& q, int b, int direction, int rows, int row,
                                           int four, int channel) {
  long long at = (long long)(b * q.directions + direction) * rows + row;
  return ((at * (NP / 4) + four) * q.channels + channel) * 4;
}
