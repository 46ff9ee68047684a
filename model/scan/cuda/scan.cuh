// What the scan's kernels share: their parameters and how they cut a problem into blocks.
//
// ACTIVATION is the type of u, delta, B, C, z and the gradients of these. STATES is the state size
// N padded to a power of two, 8 to 64. The state, the parameters and every sum are float32.
//
// A block owns a tile of neighbouring channels of one sample and one segment of its tokens, in both
// directions at once. A direction is a way to count: position p of chunk k is token k * CHUNK + p
// going forward and k * CHUNK + CHUNK - 1 - p in reverse. Chunks are cut alike for both, so that the
// directions can meet: each writes partial results in the half of the segment that it visits first
// and adds the other's to its own in the half that it visits second. Tokens beyond the end have a
// step of zero, which leaves the state as it is; what is read for them is some token's, not memory
// that is not ours.
#pragma once
#include "common.cuh"

using Act = ACTIVATION;
constexpr int NP = STATES;
constexpr int CHUNK = 16;  // tokens between kept states

// (B, groups, N, L) of any strides.
template <class T> struct Rows {
  T* data;
  long long batch, group, state, token;
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
  float *ends, *steps; // (B, directions, segments, NP / 4, D, 4) and (.., D): see `scan_walk`
  float *dBC;          // (B, directions, tiles, L, 2 NP): partial sums
  float *dA, *dD;      // (B, directions, segments, D, NP) and (.., 2, D): D's, then the bias's
  int batch, channels, length, states, groups;
  int directions, segments, segment_chunks;
  int softplus, first_token, keep_total, shared_u, shared_delta;
};

// The part of the problem that a block owns.
struct Part {
  int tile, b, segment, group, channel, end;  // channels from `channel` to `end`
  int first_chunk, last_chunk;                // of the segment; the last one is not in it
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

__device__ __forceinline__ int token_of(int chunk, int position, int reverse) {
  return chunk * CHUNK + (reverse ? CHUNK - 1 - position : position);
}

// B and C of a chunk as float32, a row of 2 NP per position, by `threads` threads. A masked scan reads
// nothing at its first token, which is a C of zero.
__device__ __forceinline__ void stage_BC(float* rows, const Scan& q, const Direction& d,
                                         const Part& part, int chunk, int reverse, int thread,
                                         int threads) {
  const Act* B = d.B.data + part.b * d.B.batch + part.group * d.B.group;
  const Act* C = d.C.data + part.b * d.C.batch + part.group * d.C.group;
  int unread = d.masked ? (d.reverse ? q.length - 1 : 0) : -1;
#pragma unroll 4
  for (int i = thread; i < CHUNK * 2 * NP; i += threads) {
    int position = i / (2 * NP), n = i % NP;
    bool is_C = i % (2 * NP) >= NP;
    int token = min(token_of(chunk, position, reverse), q.length - 1);
    const Act* at = is_C ? C + n * d.C.state + token * d.C.token
                         : B + n * d.B.state + token * d.B.token;
    bool has = n < q.states && !(is_C && token == unread);
    rows[i] = has ? value(*at) : 0.f;
  }
}

// Index of the four states `four` of a channel in `kept` and `ends`; `row` counts chunks or segments.
__device__ __forceinline__ long long fours(const Scan& q, int b, int direction, int rows, int row,
                                           int four, int channel) {
  long long at = (long long)(b * q.directions + direction) * rows + row;
  return ((at * (NP / 4) + four) * q.channels + channel) * 4;
}
