// The gradients of the scan.
//
// A lane holds a tile of 2 channels x 4 states, so that the sums over states (for u and delta) and
// over channels (for B and C) are each half done within a lane. A warp owns 256 / NP channels of one
// direction; BACKWARD_WARPS warps per direction make a block, which adds up their sums for B and C
// before it writes them.
//
// A chunk is walked three times. The first walk goes from the kept state to the end and leaves the
// state before every pair of tokens in shared memory. Then the pairs are taken from the last to the
// first: the second walk makes the decays and carried states of a pair in registers, the third goes
// back through it. That is 1.9 exponentials per state and token, and nothing of size CHUNK x states
// in registers.
#pragma once
#include "scan.cuh"

constexpr int WARPS = BACKWARD_WARPS;      // per direction
constexpr int LPT = NP / 4;                // lanes that share 2 channels
constexpr int WARP_TILE = 64 / LPT;        // channels of a warp
constexpr int BACKWARD_TILE = WARPS * WARP_TILE;
constexpr int PAIRS = CHUNK / 2;
constexpr int ROWS = 32 / WARP_TILE;       // tokens that a warp prepares at a time

// Shared memory of one warp, in floats. The sums for B and C of a pair of tokens take the place of
// the state before it, once that has been read; the first pair's state is read from memory.
constexpr int TILE = CHUNK * WARP_TILE, SLOT = 256, SLOTS = NP <= 32 ? PAIRS - 1 : PAIRS;
constexpr int WARP_FLOATS = 4 * TILE + SLOTS * SLOT + WARP_TILE;
constexpr int ROW_FLOATS = CHUNK * 2 * NP;  // of a direction: B and C
__device__ __forceinline__ int sums_at(int pair) {
  if (pair > 0) return (pair - 1) * SLOT;
  return NP <= 32 ? SLOT / 2 : (PAIRS - 1) * SLOT;
}

struct Tile {
  float *step, *add, *grad;  // CHUNK x WARP_TILE each: dt; dt u, later sum dw B; dy
  float* decayed;            // later sum of the decays' gradients, times A
  float* slots;
  float* first;              // WARP_TILE: gradient of the start state
  const float* rows;         // B and C
  int lane, group, s;        // lane = group * LPT + s: channels 2 group .., states 4 s ..
  float A[2][4], h[2][4], dh[2][4], dA[2][4];
};

__device__ __forceinline__ float4 load4(const float* from) { return *(const float4*)from; }
__device__ __forceinline__ void load_state(float (&h)[2][4], const float* from, int stride) {
#pragma unroll
  for (int c = 0; c < 2; c++) {
    float4 f = load4(from + c * stride);
    h[c][0] = f.x, h[c][1] = f.y, h[c][2] = f.z, h[c][3] = f.w;
  }
}

// The state before each pair of tokens but the first goes to its slot.
__device__ __forceinline__ void sweep(Tile& me) {
#pragma unroll 1
  for (int pair = 0; pair + 1 < PAIRS; pair++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int p = pair * 2 + i;
      float2 dt2 = *(const float2*)(me.step + p * WARP_TILE + me.group * 2);
      float2 x2 = *(const float2*)(me.add + p * WARP_TILE + me.group * 2);
      float4 b4 = load4(me.rows + p * 2 * NP + me.s * 4);
      float dt[2] = {dt2.x, dt2.y}, x[2] = {x2.x, x2.y}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int n = 0; n < 4; n++)
          me.h[c][n] = fmaf(ex2(dt[c] * me.A[c][n]), me.h[c][n], x[c] * b[n]);
    }
#pragma unroll
    for (int c = 0; c < 2; c++)
      *(float4*)(me.slots + pair * SLOT + c * 128 + me.lane * 4) =
          make_float4(me.h[c][0], me.h[c][1], me.h[c][2], me.h[c][3]);
  }
}

template <bool Masked> __device__ __forceinline__ void back(Tile& me, const float* kept) {
#pragma unroll 1
  for (int pair = PAIRS - 1; pair >= 0; pair--) {
    float h[2][4], a[2][2][4], carried[2][2][4];
    if (pair)
      load_state(h, me.slots + (pair - 1) * SLOT + me.lane * 4, 128);
    else
      load_state(h, kept, 4);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int p = pair * 2 + i;
      float2 dt2 = *(const float2*)(me.step + p * WARP_TILE + me.group * 2);
      float2 x2 = *(const float2*)(me.add + p * WARP_TILE + me.group * 2);
      float4 b4 = load4(me.rows + p * 2 * NP + me.s * 4);
      float dt[2] = {dt2.x, dt2.y}, x[2] = {x2.x, x2.y}, b[4] = {b4.x, b4.y, b4.z, b4.w};
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int n = 0; n < 4; n++) {
          a[i][c][n] = ex2(dt[c] * me.A[c][n]);
          carried[i][c][n] = a[i][c][n] * h[c][n];
          if (i == 0) h[c][n] = fmaf(x[c], b[n], carried[i][c][n]);
        }
    }
    float sums[2][8], own[2][4];
#pragma unroll
    for (int i = 1; i >= 0; i--) {
      int p = pair * 2 + i;
      float2 dt2 = *(const float2*)(me.step + p * WARP_TILE + me.group * 2);
      float2 x2 = *(const float2*)(me.add + p * WARP_TILE + me.group * 2);
      float2 dy2 = *(const float2*)(me.grad + p * WARP_TILE + me.group * 2);
      float4 b4 = load4(me.rows + p * 2 * NP + me.s * 4);
      float4 c4 = load4(me.rows + p * 2 * NP + NP + me.s * 4);
      float dt[2] = {dt2.x, dt2.y}, x[2] = {x2.x, x2.y}, dy[2] = {dy2.x, dy2.y};
      float b[4] = {b4.x, b4.y, b4.z, b4.w}, C[4] = {c4.x, c4.y, c4.z, c4.w};
#pragma unroll
      for (int n = 0; n < 8; n++) sums[i][n] = 0.f;
#pragma unroll
      for (int c = 0; c < 2; c++) {
        own[i][c] = own[i][2 + c] = 0.f;
#pragma unroll
        for (int n = 0; n < 4; n++) {
          float dcarried = fmaf(dy[c], C[n], me.dh[c][n]);
          float dwritten = Masked ? me.dh[c][n] : dcarried;
          float ddecay = dcarried * carried[i][c][n];  // times the decay
          me.dA[c][n] = fmaf(ddecay, dt[c], me.dA[c][n]);
          own[i][c] = fmaf(dwritten, b[n], own[i][c]);
          own[i][2 + c] = fmaf(ddecay, me.A[c][n], own[i][2 + c]);
          sums[i][n] = fmaf(x[c], dwritten, sums[i][n]);
          sums[i][4 + n] = fmaf(dy[c], carried[i][c][n], sums[i][4 + n]);
          me.dh[c][n] = a[i][c][n] * dcarried;
        }
      }
      if (!Masked) {  // the read-out sees what the token itself adds
        float seen = fmaf(dy[1], x[1], dy[0] * x[0]);
#pragma unroll
        for (int n = 0; n < 4; n++) sums[i][4 + n] = fmaf(b[n], seen, sums[i][4 + n]);
      }
      spread_sum<LPT, 1>(own[i], me.lane);
      spread_sum<32 / LPT, LPT>(sums[i], me.lane);
    }
    __syncwarp();
    // Values that a lane is left with, and which they are; see spread_sum.
    constexpr int OWNED = LPT < 4 ? 4 / LPT : 1, SUMMED = 32 / LPT < 8 ? 8 * LPT / 32 : 1;
    int owned = me.s * 4 / LPT, summed = me.group * 8 * LPT / 32;
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int p = pair * 2 + i;
#pragma unroll
      for (int j = 0; j < OWNED; j++) {
        int at = p * WARP_TILE + me.group * 2 + (owned + j) % 2;
        (owned + j < 2 ? me.add : me.decayed)[at] = own[i][j];
      }
      float* row = me.slots + sums_at(pair) + i * 2 * NP + me.s * 4;
#pragma unroll
      for (int j = 0; j < SUMMED; j++) {
        int v = summed + j;
        row[(v < 4 ? 0 : NP) + v % 4] = sums[i][j];
      }
    }
  }
}

__device__ __forceinline__ void backward(const Scan& q) {
  SHARED_MEMORY(shared);
  Part part = part_of_block<BACKWARD_TILE>(q);
  int warp = __shfl_sync(ALL_LANES, int(threadIdx.x / 32), 0), direction = warp >= WARPS;
  warp -= direction * WARPS;
  const Direction& d = q.direction[direction];
  float* rows = (float*)shared + direction * (ROW_FLOATS + WARPS * WARP_FLOATS);
  float* scratch = rows + ROW_FLOATS;  // of the direction's warps, one after the other
  Tile me;
  me.lane = threadIdx.x % 32;
  me.group = me.lane / LPT;
  me.s = me.lane % LPT;
  me.rows = rows;
  me.step = scratch + warp * WARP_FLOATS;
  me.add = me.step + TILE;
  me.grad = me.add + TILE;
  me.decayed = me.grad + TILE;
  me.slots = me.decayed + TILE;
  me.first = me.slots + SLOTS * SLOT;
  int channel0 = part.channel + warp * WARP_TILE, chunks = part.last_chunk - part.first_chunk;
  int all_chunks = (q.length + CHUNK - 1) / CHUNK, last_channel = part.end - 1;
  // What a lane prepares and finishes: one channel, every ROWS-th token.
  int e = me.lane % WARP_TILE, r = me.lane / WARP_TILE, channel = min(channel0 + e, last_channel);
  bool has_channel = channel0 + e < part.end;
  float bias = d.bias ? d.bias[channel] : 0.f, skip = d.D ? d.D[channel] : 0.f;
  float dbias = 0.f, dskip = 0.f;

#pragma unroll
  for (int c = 0; c < 2; c++) {
    int mine = min(channel0 + 2 * me.group + c, last_channel);
#pragma unroll
    for (int n = 0; n < 4; n++) {
      int state = me.s * 4 + n;
      me.A[c][n] = state < q.states ? d.A[(long long)mine * q.states + state] * LOG2E : 0.f;
      me.dh[c][n] = me.dA[c][n] = 0.f;
    }
  }
  // What the segments after this one, in the order of the scan, send back.
  int after = d.reverse ? part.segment : q.segments - 1 - part.segment;
  for (int i = 0; i < after; i++) {
    int segment = d.reverse ? i : q.segments - 1 - i;
    long long row = (long long)(part.b * q.directions + direction) * q.segments + segment;
#pragma unroll
    for (int c = 0; c < 2; c++) {
      int mine = min(channel0 + 2 * me.group + c, last_channel);
      float4 end = load4(q.ends + fours(q, part.b, direction, q.segments, segment, me.s, mine));
      float steps = q.steps[row * q.channels + mine], ends[4] = {end.x, end.y, end.z, end.w};
#pragma unroll
      for (int n = 0; n < 4; n++)
        me.dh[c][n] = fmaf(ex2(steps * me.A[c][n]), me.dh[c][n], ends[n]);
    }
  }

  for (int i = 0; i < chunks; i++) {
    int chunk = d.reverse ? part.first_chunk + i : part.last_chunk - 1 - i;
    // Of two directions, the forward one is the first at the upper half of the chunks; in the
    // middle of an odd number both are there at once.
    bool second = q.directions == 1 || (d.reverse ? i >= chunks - chunks / 2 : i >= chunks - chunks / 2);
    bool together = q.directions == 2 && chunks % 2 && i == chunks / 2;
    if (together) second = d.reverse;
    if (i + 1 < chunks) {
      int token = min((d.reverse ? chunk + 1 : chunk - 1) * CHUNK + me.lane % CHUNK, q.length - 1);
      int at = min(channel0, last_channel);
      prefetch((me.lane < CHUNK ? d.u : d.delta).at(part.b, at, token));
      if (me.lane < CHUNK)
        prefetch(q.dout.at(part.b, at, token));
      else if (q.z.data)
        prefetch(q.z.at(part.b, at, token));
    }
    stage_BC(rows, q, d, part, chunk, d.reverse, warp * 32 + me.lane, WARPS * 32);
#pragma unroll 4
    for (int j = 0; j < CHUNK / ROWS; j++) {
      int p = j * ROWS + r, token = token_of(chunk, p, d.reverse);
      bool has = token < q.length && has_channel;
      token = min(token, q.length - 1);
      float u = value(*d.u.at(part.b, channel, token));
      float raw = value(*d.delta.at(part.b, channel, token)) + bias;
      float dy = value(*q.dout.at(part.b, channel, token));
      if (q.z.data) {
        float z = value(*q.z.at(part.b, channel, token));
        dy *= z * sigmoid(z);
      }
      float dt = has ? (q.softplus ? softplus(raw) : raw) : 0.f;
      me.step[p * WARP_TILE + e] = dt;
      me.add[p * WARP_TILE + e] = dt * u;
      me.grad[p * WARP_TILE + e] = has ? dy : 0.f;
    }
    const float* kept =
        q.kept + fours(q, part.b, direction, all_chunks, chunk, me.s, 0);
    int c0 = channel0 + 2 * me.group, c1 = min(c0 + 1, last_channel);
    c0 = min(c0, last_channel);
    {
      float4 f = load4(kept + 4ll * c0), g = load4(kept + 4ll * c1);
      me.h[0][0] = f.x, me.h[0][1] = f.y, me.h[0][2] = f.z, me.h[0][3] = f.w;
      me.h[1][0] = g.x, me.h[1][1] = g.y, me.h[1][2] = g.z, me.h[1][3] = g.w;
    }
    __syncthreads();
    sweep(me);
    // The second channel of a tile may not exist; the first one's state does as well for it.
    const float* start = kept + 4ll * c0;
    if (d.masked)
      back<true>(me, start);
    else
      back<false>(me, start);
    bool at_start = q.first_token && i + 1 == chunks &&
                    part.segment == (d.reverse ? q.segments - 1 : 0);
    if (at_start) {
      float sum[2] = {me.dh[0][0] + me.dh[0][1] + me.dh[0][2] + me.dh[0][3],
                      me.dh[1][0] + me.dh[1][1] + me.dh[1][2] + me.dh[1][3]};
      spread_sum<LPT, 1>(sum, me.lane);
      me.first[me.group * 2 + me.s * 2 / LPT] = sum[0];
    }
    __syncthreads();

    // The sums of all warps for B and C.
    int unread = d.masked ? (d.reverse ? q.length - 1 : 0) : -1, tiles = gridDim.x / q.batch / q.segments;
    long long block_row = (long long)(part.b * q.directions + direction) * tiles + part.tile;
#pragma unroll 2
    for (int index = warp * 32 + me.lane; index < ROW_FLOATS; index += WARPS * 32) {
      int p = index / (2 * NP), v = index % (2 * NP), token = token_of(chunk, p, d.reverse);
      const float* from = scratch + 4 * TILE + sums_at(p / 2) + p % 2 * 2 * NP + v;
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < WARPS; w++) sum += from[w * WARP_FLOATS];
      if (token == unread && v >= NP) sum = 0.f;
      if (token < q.length) q.dBC[(block_row * q.length + token) * 2 * NP + v] = sum;
    }
    if (together && second) __syncthreads();
#pragma unroll 2
    for (int j = 0; j < CHUNK / ROWS; j++) {
      int p = j * ROWS + r, at = p * WARP_TILE + e, token = token_of(chunk, p, d.reverse);
      if (token >= q.length || !has_channel) continue;
      long long place = ((long long)part.b * q.length + token) * q.channels + channel;
      float u = value(*d.u.at(part.b, channel, token)), dt = me.step[at], dy = me.grad[at];
      float dwritten = me.add[at], ddecayed = me.decayed[at];
      float du = fmaf(dt, dwritten, skip * dy);
      float slope = q.softplus ? 1.f - ex2(-dt * LOG2E) : 1.f;
      float ddelta = fmaf(u, dwritten, LN2 * ddecayed) * slope;
      if (at_start && token == (d.reverse ? q.length - 1 : 0)) du += me.first[e];
      dbias += ddelta;
      dskip = fmaf(dy, u, dskip);
      if (q.shared_u && !second)
        q.du[place] = du;
      else
        store(d.du.at(part.b, channel, token), q.shared_u ? du + q.du[place] : du);
      if (q.shared_delta && !second)
        q.ddelta[place] = ddelta;
      else
        store(d.ddelta.at(part.b, channel, token),
              q.shared_delta ? ddelta + q.ddelta[place] : ddelta);
      if (second && q.z.data) {
        float z = value(*q.z.at(part.b, channel, token)), gate = sigmoid(z);
        float dout = value(*q.dout.at(part.b, channel, token));
        store(q.dz.at(part.b, channel, token),
              dout * q.y[place] * gate * fmaf(z, 1.f - gate, 1.f));
      }
    }
    if (together && !second) __syncthreads();
  }

  long long row = (long long)(part.b * q.directions + direction) * q.segments + part.segment;
#pragma unroll
  for (int c = 0; c < 2; c++)
    if (channel0 + 2 * me.group + c < part.end)
      *(float4*)(q.dA + (row * q.channels + channel0 + 2 * me.group + c) * NP + me.s * 4) =
          make_float4(me.dA[c][0], me.dA[c][1], me.dA[c][2], me.dA[c][3]);
#pragma unroll
  for (int step = WARP_TILE; step < 32; step *= 2) {
    dskip += from_lane_xor(dskip, step);
    dbias += from_lane_xor(dbias, step);
  }
  if (r == 0 && has_channel) {
    q.dD[row * 2 * q.channels + channel] = dskip;
    q.dD[(row * 2 + 1) * q.channels + channel] = dbias;
  }
}
