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

// Two tokens' numbers for this lane, from the tiles and rows that start at theirs.
struct Pair {
  const float *tile, *rows;
  __device__ __forceinline__ Pair(const Tile& me, int pair)
      : tile(me.step + me.group * 2 + pair * 2 * WARP_TILE), rows(me.rows + me.s * 4 + pair * 4 * NP) {}
  __device__ __forceinline__ void move(int pairs) {
    tile += pairs * 2 * WARP_TILE;
    rows += pairs * 4 * NP;
  }
  __device__ __forceinline__ void of_channels(float (&v)[2], int which, int i) const {
    float2 f = *(const float2*)(tile + which * TILE + i * WARP_TILE);
    v[0] = f.x, v[1] = f.y;
  }
  __device__ __forceinline__ void of_states(float (&v)[4], int is_C, int i) const {
    float4 f = load4(rows + i * 2 * NP + is_C * NP);
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
  }
};
enum { STEP, ADD, GRAD, DECAYED };  // the tiles, in their order

// The state before each pair of tokens but the first goes to its slot.
__device__ __forceinline__ void sweep(Tile& me) {
  Pair at(me, 0);
  float* slot = me.slots + me.lane * 4;
#pragma unroll 1
  for (int pair = 0; pair + 1 < PAIRS; pair++, at.move(1), slot += SLOT) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float dt[2], x[2], b[4];
      at.of_channels(dt, STEP, i);
      at.of_channels(x, ADD, i);
      at.of_states(b, 0, i);
#pragma unroll
      for (int c = 0; c < 2; c++)
#pragma unroll
        for (int n = 0; n < 4; n++)
          me.h[c][n] = fmaf(ex2(dt[c] * me.A[c][n]), me.h[c][n], x[c] * b[n]);
    }
#pragma unroll
    for (int c = 0; c < 2; c++)
      *(float4*)(slot + c * 128) = make_float4(me.h[c][0], me.h[c][1], me.h[c][2], me.h[c][3]);
  }
}

template <bool Masked> __device__ __forceinline__ void back(Tile& me, const float* kept) {
  // Values that a lane is left with, and which they are; see spread_sum.
  constexpr int OWNED = LPT < 4 ? 4 / LPT : 1, SUMMED = 32 / LPT < 8 ? 8 * LPT / 32 : 1;
  int owned = me.s * 4 / LPT, summed = me.group * 8 * LPT / 32;
  // The sums over states take the place of two tiles: first `dwritten`, then `ddecayed`.
  float* own_at = me.step + (owned < 2 ? ADD : DECAYED) * TILE + me.group * 2 + owned % 2 +
                  (PAIRS - 1) * 2 * WARP_TILE;
  int sums_row = me.s * 4 + (summed < 4 ? 0 : NP) + summed % 4;
  Pair at(me, PAIRS - 1);
  const float* slot = me.slots + me.lane * 4 + (PAIRS - 2) * SLOT;
#pragma unroll 1
  for (int pair = PAIRS - 1; pair >= 0; pair--, at.move(-1), slot -= SLOT, own_at -= 2 * WARP_TILE) {
    float h[2][4], a[2][2][4], carried[2][2][4];
    if (pair)
      load_state(h, slot, 128);
    else
      load_state(h, kept, 4);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float dt[2], x[2], b[4];
      at.of_channels(dt, STEP, i);
      at.of_channels(x, ADD, i);
      at.of_states(b, 0, i);
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
      float dt[2], x[2], dy[2], b[4], C[4];
      at.of_channels(dt, STEP, i);
      at.of_channels(x, ADD, i);
      at.of_channels(dy, GRAD, i);
      at.of_states(b, 0, i);
      at.of_states(C, 1, i);
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
    float* row = me.slots + sums_at(pair) + sums_row;
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
      for (int j = 0; j < OWNED; j++) own_at[i * WARP_TILE + j] = own[i][j];
#pragma unroll
      for (int j = 0; j < SUMMED; j++) row[i * 2 * NP + j / 4 * NP + j % 4] = sums[i][j];
    }
  }
}

// Where the sample of a block begins in every tensor, in shared memory: registers are dear.
struct Sample {
  const Act *u, *delta, *z, *dout;
  Act *du, *ddelta, *dz;
  float *y, *some_du, *some_ddelta, *kept, *dBC;
};
constexpr int SAMPLE_FLOATS = 24;
static_assert(sizeof(Sample) == SAMPLE_FLOATS * 4, "launch code knows its size");
__device__ __forceinline__ void locate(Sample& to, const Scan& q, const Direction& d,
                                       const Part& part, int direction) {
  long long dense = (long long)part.b * q.length * q.channels;
  int tiles = gridDim.x / q.batch / q.segments;
  long long row = (long long)(part.b * q.directions + direction) * tiles + part.tile;
  to.u = d.u.data + part.b * d.u.batch;
  to.delta = d.delta.data + part.b * d.delta.batch;
  to.z = q.z.data + part.b * q.z.batch;
  to.dout = q.dout.data + part.b * q.dout.batch;
  to.du = d.du.data + part.b * d.du.batch;
  to.ddelta = d.ddelta.data + part.b * d.ddelta.batch;
  to.dz = q.dz.data + part.b * q.dz.batch;
  to.y = q.y + dense;
  to.some_du = q.du + dense;
  to.some_ddelta = q.ddelta + dense;
  to.kept = q.kept + fours(q, part.b, direction, (q.length + CHUNK - 1) / CHUNK, 0, 0, 0);
  to.dBC = q.dBC + row * q.length * 2 * NP;
}
template <class T>
__device__ __forceinline__ Column<T> column(T* sample, const Strided<T>& of, int channel) {
  return {(T*)((const char*)sample + (long long)channel * int(of.channel * sizeof(T))), of.token};
}
struct Yes {
  static constexpr bool value = true;
};
struct No {
  static constexpr bool value = false;
};

__device__ __forceinline__ void backward(const Scan& q) {
  SHARED_MEMORY(shared);
  Part part = part_of_block<BACKWARD_TILE>(q);
  int warp = __shfl_sync(ALL_LANES, int(threadIdx.x / 32), 0), direction = warp >= WARPS;
  warp -= direction * WARPS;
  const Direction& d = q.direction[direction];
  float* rows = (float*)shared + direction * (ROW_FLOATS + SAMPLE_FLOATS + WARPS * WARP_FLOATS);
  Sample& sample = *(Sample*)(rows + ROW_FLOATS);
  if (warp == 0 && threadIdx.x % 32 == 0) locate(sample, q, d, part, direction);
  zero_padding(rows, q, threadIdx.x % (32 * WARPS), 32 * WARPS);
  float* scratch = rows + ROW_FLOATS + SAMPLE_FLOATS;  // of the direction's warps, one after the other
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
  int last_channel = part.end - 1, last = q.length - 1, unread = unread_token(q, d);
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

  __syncthreads();
  for (int i = 0; i < chunks; i++) {
    int chunk = d.reverse ? part.first_chunk + i : part.last_chunk - 1 - i;
    // Of two directions, the forward one is the first at the upper half of the chunks; in the
    // middle of an odd number both are there at once.
    bool second = q.directions == 1 || i >= chunks - chunks / 2;
    bool together = q.directions == 2 && chunks % 2 && i == chunks / 2;
    if (together) second = d.reverse;
    Way way(chunk, d.reverse);
    if (i + 1 < chunks) {  // asks for the rows of the next chunk: one line per token and array
      int token = min((d.reverse ? chunk + 1 : chunk - 1) * CHUNK + me.lane % CHUNK, last);
      int at = min(channel0, last_channel);
      bool low = me.lane < CHUNK;
      prefetch(column(low ? sample.u : sample.delta, low ? d.u : d.delta, at).at(token));
      if (low || q.z.data)
        prefetch(column(low ? sample.dout : sample.z, low ? q.dout : q.z, at).at(token));
    }
    stage_BC(rows, q, d, part, way, me.lane, warp, WARPS);
    Column<const Act> us = column(sample.u, d.u, channel), zs = column(sample.z, q.z, channel);
    Column<const Act> deltas = column(sample.delta, d.delta, channel);
    Column<const Act> douts = column(sample.dout, q.dout, channel);
    auto gradient = [&](int token) {  // of the sum of the read-outs, before the gate
      float dy = value(*douts.at(token));
      if (!q.z.data) return dy;
      float z = value(*zs.at(token));
      return dy * z * sigmoid(z);
    };
#pragma unroll 4
    for (int j = 0; j < CHUNK / ROWS; j++) {
      int p = j * ROWS + r, token = way.token(p);
      bool has = token <= last && has_channel, read = has && token != unread;
      token = min(token, last);
      float u = value(*us.at(token)), raw = value(*deltas.at(token)) + bias;
      float dy = gradient(token), dt = has ? (q.softplus ? softplus(raw) : raw) : 0.f;
      me.step[p * WARP_TILE + e] = dt;
      me.add[p * WARP_TILE + e] = dt * u;
      me.grad[p * WARP_TILE + e] = read ? dy : 0.f;
    }
    const float* kept =
        (const float*)opaque((const char*)sample.kept) + fours(q, 0, 0, 0, chunk, me.s, 0);
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
#pragma unroll
    for (int v = me.lane % COLUMNS; v < 2 * NP; v += COLUMNS) {
      Column<float> sums(sample.dBC + v, 2 * NP);
#pragma unroll 2
      for (int p = warp * ROWS_AT_ONCE + me.lane / COLUMNS; p < CHUNK; p += WARPS * ROWS_AT_ONCE) {
        const float* from = scratch + 4 * TILE + sums_at(p / 2) + p % 2 * 2 * NP + v;
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += from[w * WARP_FLOATS];
        if (way.token(p) <= last) *sums.at(way.token(p)) = sum;
      }
    }
    if (together && second) __syncthreads();
    int first = at_start ? (d.reverse ? last : 0) : -1;
    bool shared_u = q.shared_u, shared_delta = q.shared_delta, gated = q.z.data;
    auto finish = [&](auto is_second) {
      constexpr bool Second = decltype(is_second)::value;
      Column<float> ys(sample.y + channel, q.channels);
      Column<float> some_du(sample.some_du + channel, q.channels);
      Column<float> some_ddelta(sample.some_ddelta + channel, q.channels);
      Column<Act> dus = column(sample.du, d.du, channel), dzs = column(sample.dz, q.dz, channel);
      Column<Act> ddeltas = column(sample.ddelta, d.ddelta, channel);
#pragma unroll 2
      for (int j = 0; j < CHUNK / ROWS; j++) {
        int p = j * ROWS + r, at = p * WARP_TILE + e, token = way.token(p);
        if (token > last || !has_channel) continue;
        float u = value(*us.at(token)), dt = me.step[at], dy = me.grad[at];
        if (token == unread) dy = gradient(token);  // the skip reads it all the same
        float du = fmaf(dt, me.add[at], skip * dy);
        float slope = q.softplus ? 1.f - ex2(-dt * LOG2E) : 1.f;
        float ddelta = fmaf(u, me.add[at], LN2 * me.decayed[at]) * slope;
        if (token == first) du += me.first[e];
        dbias += ddelta;
        dskip = fmaf(dy, u, dskip);
        if (!Second && shared_u)
          *some_du.at(token) = du;
        else
          store(dus.at(token), Second && shared_u ? du + *some_du.at(token) : du);
        if (!Second && shared_delta)
          *some_ddelta.at(token) = ddelta;
        else
          store(ddeltas.at(token), Second && shared_delta ? ddelta + *some_ddelta.at(token) : ddelta);
        if (Second && gated) {
          float z = value(*zs.at(token)), gate = sigmoid(z), dout = value(*douts.at(token));
          store(dzs.at(token), dout * *ys.at(token) * gate * fmaf(z, 1.f - gate, 1.f));
        }
      }
    };
    if (second)
      finish(Yes{});
    else
      finish(No{});
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
