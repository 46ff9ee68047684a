// The gradients of the scan.
//
// BACKWARD_WARPS warps per direction make a block. They stage a chunk, walk it (scan_walks.cuh), add up
// their sums for B and C and finish the gradients of u, delta and z. A chunk takes two barriers.
#pragma once
#include "scan_walks.cuh"

// Where the sample of a block begins in every tensor. It lies in shared memory to save registers.
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
  to.dout = q.dout.at(part.b, 0, 0);
  to.u = d.u.at(part.b, 0, 0);
  to.delta = d.delta.at(part.b, 0, 0);
  to.z = q.z.data ? q.z.at(part.b, 0, 0) : to.dout;  // an absent z is never used
  to.du = d.du.at(part.b, 0, 0);
  to.ddelta = d.ddelta.at(part.b, 0, 0);
  to.dz = q.dz.at(part.b, 0, 0);
  to.y = q.y + dense;
  to.some_du = q.du + dense;
  to.some_ddelta = q.ddelta + dense;
  to.kept = q.kept + fours(q, part.b, direction, (q.length + CHUNK - 1) / CHUNK, 0, 0, 0);
  to.dBC = q.dBC + row * q.length * 2 * NP;
}
template <class T>
__device__ __forceinline__ Column<T> column(T* sample, const Strided<T>& of, int channel) {
  return {address((const char*)sample, channel, of.channel), of.token};
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
  float* scratch = rows + ROW_FLOATS + SAMPLE_FLOATS;  // of each warp of the direction in turn
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
  // A lane's second channel may not exist. The kept state of the first one then stands in for it,
  // because memory behind that may be beyond the tensor and NaN.
  if (me.s == 0) me.first[2 * me.group] = channel0 + 2 * me.group + 1 < part.end ? 4.f : 0.f;
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
      if (STATES_GIVEN && q.dlast && state < q.states)
        me.dh[c][n] = q.dlast[((long long)part.b * q.channels + mine) * q.states + state];
    }
  }
  // The segments after this one, in the order of the scan, send back their gradient of the state.
  int after = d.reverse ? part.segment : q.segments - 1 - part.segment;
#pragma unroll 1
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
    // Of two directions, the forward one visits the upper half of the chunks first. Both visit the
    // middle one of an odd number at once.
    bool second = q.directions == 1 || i >= chunks - chunks / 2;
    bool together = q.directions == 2 && chunks % 2 && i == chunks / 2;
    if (together) second = d.reverse;
    Way way(chunk, d.reverse);
    if (i + 1 < chunks) {  // prefetches the rows of the next chunk, one line per token and array
      int token = min((d.reverse ? chunk + 1 : chunk - 1) * CHUNK + me.lane % CHUNK, last);
      int at = min(channel0, last_channel);
      bool low = me.lane < CHUNK;
      prefetch(column(low ? sample.u : sample.delta, low ? d.u : d.delta, at).at(token));
      prefetch(column(low ? sample.dout : sample.z, low ? q.dout : q.z, at).at(token));
    }
    stage_BC<WARPS>(rows, q, d, part, way, me.lane, warp);
    bool gated = q.z.data;
#pragma unroll 1
    for (int batch = 0; batch < CHUNK / ROWS; batch += BATCH) {
      Column<const Act> us = column(sample.u, d.u, channel), zs = column(sample.z, q.z, channel);
      Column<const Act> deltas = column(sample.delta, d.delta, channel);
      Column<const Act> douts = column(sample.dout, q.dout, channel);
      Act u[BATCH], delta[BATCH], dout[BATCH], z[BATCH];  // all in flight at once
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
        int token = min(way.token((batch + j) * ROWS + r), last);
        u[j] = *us.at(token), delta[j] = *deltas.at(token);
        dout[j] = *douts.at(token), z[j] = *zs.at(token);
      }
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
        int p = (batch + j) * ROWS + r, token = way.token(p);
        bool has = token <= last && has_channel;
        float raw = value(delta[j]) + bias, gate = value(z[j]) * sigmoid(value(z[j]));
        float dt = has ? (q.softplus ? softplus(raw) : raw) : 0.f;
        float dy = value(dout[j]) * (gated ? gate : 1.f);
        me.step[p * WARP_TILE + e] = dt;
        me.add[p * WARP_TILE + e] = dt * value(u[j]);
        me.grad[p * WARP_TILE + e] = has && token != unread ? dy : 0.f;
      }
    }
    const float* kept =
        (const float*)address((const char*)sample.kept, chunk * NP / 4 + me.s, q.channels * 16);
    int c0 = channel0 + 2 * me.group, c1 = min(c0 + 1, last_channel);
    c0 = min(c0, last_channel);
    {
      float4 f = load4(kept + 4 * c0), g = load4(kept + 4 * c1);
      me.h[0][0] = f.x, me.h[0][1] = f.y, me.h[0][2] = f.z, me.h[0][3] = f.w;
      me.h[1][0] = g.x, me.h[1][1] = g.y, me.h[1][2] = g.z, me.h[1][3] = g.w;
    }
    __syncthreads();
    sweep(me);
    const float* start = kept + 4 * c0;
    if (d.masked)
      back<true>(me, start);
    else
      back<false>(me, start);
    bool at_start = i + 1 == chunks && part.segment == (d.reverse ? q.segments - 1 : 0);
    if (at_start && q.first_token) {
      float sum[2] = {me.dh[0][0] + me.dh[0][1] + me.dh[0][2] + me.dh[0][3],
                      me.dh[1][0] + me.dh[1][1] + me.dh[1][2] + me.dh[1][3]};
      spread_sum<LPT, 1>(sum, me.lane);
      me.first[me.group * 2 + me.s * 2 / LPT] = sum[0];
    }
    __syncthreads();

    // The sums of all warps for B and C.
#pragma unroll
    for (int v = me.lane % COLUMNS; v < 2 * NP; v += COLUMNS) {
      Column<float> sums = dense_column(sample.dBC + v, 2 * NP);
#pragma unroll 1
      for (int p = warp * ROWS_AT_ONCE + me.lane / COLUMNS; p < CHUNK; p += WARPS * ROWS_AT_ONCE) {
        int token = way.token(p);
        const float* from = scratch + 4 * TILE + sums_at(p / 2) + p % 2 * 2 * NP + v;
        float sum = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += from[w * WARP_FLOATS];
        if (token <= last) *sums.at(token) = sum;
      }
    }
    if (together && second) __syncthreads();
    int first = at_start ? (d.reverse ? last : 0) : -1;
    bool shared_u = q.shared_u, shared_delta = q.shared_delta;
    auto finish = [&](auto is_second) {
      constexpr bool Second = decltype(is_second)::value;
      Column<const Act> us = column(sample.u, d.u, channel), zs = column(sample.z, q.z, channel);
      Column<const Act> douts = column(sample.dout, q.dout, channel);
      Column<float> ys = dense_column(sample.y + channel, q.channels);
      Column<float> some_du = dense_column(sample.some_du + channel, q.channels);
      Column<float> some_ddelta = dense_column(sample.some_ddelta + channel, q.channels);
      Column<Act> dus = column(sample.du, d.du, channel), dzs = column(sample.dz, q.dz, channel);
      Column<Act> ddeltas = column(sample.ddelta, d.ddelta, channel);
#pragma unroll 1
      for (int batch = 0; batch < CHUNK / ROWS; batch += BATCH) {
        Act u[BATCH], z[BATCH], dout[BATCH];  // all in flight at once
        float y[BATCH], other_du[BATCH], other_ddelta[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
          int token = min(way.token((batch + j) * ROWS + r), last);
          u[j] = *us.at(token);
          if (Second && gated) z[j] = *zs.at(token), dout[j] = *douts.at(token), y[j] = *ys.at(token);
          if (Second && shared_u) other_du[j] = *some_du.at(token);
          if (Second && shared_delta) other_ddelta[j] = *some_ddelta.at(token);
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
          int p = (batch + j) * ROWS + r, at = p * WARP_TILE + e, token = way.token(p);
          bool has = token <= last && has_channel;
          float x = value(u[j]), dt = me.step[at], dy = me.grad[at];
          float du = fmaf(dt, me.add[at], skip * dy);
          float slope = q.softplus ? 1.f - ex2(-dt * LOG2E) : 1.f;
          float ddelta = has ? fmaf(x, me.add[at], LN2 * me.decayed[at]) * slope : 0.f;
          dbias += ddelta;
          dskip = fmaf(dy, x, dskip);
          if (token == first && has) {
            if (q.first_token) du += me.first[e];
            if (d.masked) {  // only the skip connection reads this token
              float g = gated ? value(*zs.at(token)) : 0.f, unseen = value(*douts.at(token));
              if (gated) unseen *= g * sigmoid(g);
              du = fmaf(skip, unseen, du);
              dskip = fmaf(unseen, x, dskip);
            }
          }
          if (!has) continue;
          if (shared_u && !Second)
            *some_du.at(token) = du;
          else
            store(dus.at(token), Second && shared_u ? du + other_du[j] : du);
          if (shared_delta && !Second)
            *some_ddelta.at(token) = ddelta;
          else
            store(ddeltas.at(token), Second && shared_delta ? ddelta + other_ddelta[j] : ddelta);
          if (Second && gated) {
            float g = value(z[j]), open = sigmoid(g), slope = open * fmaf(g, 1.f - open, 1.f);
            store(dzs.at(token), value(dout[j]) * y[j] * slope);
          }
        }
      }
    };
    if (second)
      finish(Yes{});
    else
      finish(No{});
    if (together && !second) __syncthreads();
  }

  if (STATES_GIVEN && q.dstart && part.segment == (d.reverse ? q.segments - 1 : 0))
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
      for (int n = 0; n < 4; n++) {
        int mine = channel0 + 2 * me.group + c, state = me.s * 4 + n;
        if (mine <= last_channel && state < q.states)
          q.dstart[((long long)part.b * q.channels + mine) * q.states + state] = me.dh[c][n];
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
