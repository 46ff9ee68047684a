// The gradients of the scan.
//
// BACKWARD_WARPS warps per direction make a block. They stage a chunk, walk it (scan_walks.cuh), add up
// their sums for B and C and finish the gradients of u, delta and z. A chunk takes two barriers.
#pragma once
#include "scan_walks.cuh"
#include "vector.cuh"

// V neighbouring channels of one token.
using Acts = Vector<Act, V>;
using Floats = Vector<float, V>;
template <class T>
__device__ __forceinline__ Vector<T, V> at_token(const Column<const T>& of, int token) {
  return *(const Vector<T, V>*)of.at(token);
}
__device__ __forceinline__ Floats at_token(const Column<float>& of, int token) {
  return *(const Floats*)of.at(token);
}

// The part of a block, and where its sample begins in every tensor. They lie in shared memory to
// save registers.
struct Sample {
  Part part;
  int unread, padding[3];
  const Act *u, *delta, *z, *dout;
  Act *du, *ddelta, *dz;
  float *y, *some_du, *some_ddelta, *kept, *dBC;
};
constexpr int SAMPLE_FLOATS = 36;
static_assert(sizeof(Sample) == SAMPLE_FLOATS * 4, "launch code knows its size");
__device__ __forceinline__ void locate(Sample& to, const Scan& q, const Direction& d,
                                       const Part& part, int direction) {
  long long dense = (long long)part.b * q.length * q.channels;
  to.part = part;
  to.unread = unread_token(q, d);
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
// V neighbouring numbers of a tile in shared memory.
__device__ __forceinline__ void from_tile(float (&to)[V], const float* from) {
  (*(const Floats*)from).unpack(to);
}
__device__ __forceinline__ void add_to(float (&to)[V], const Floats& what) {
  float more[V];
  what.unpack(more);
#pragma unroll
  for (int v = 0; v < V; v++) to[v] += more[v];
}
// What a lane prepares and finishes: V channels from `channel` on, of which all exist or none, and
// every ROWS-th token from the one at place `row` on. It is made anew for each chunk, from shared
// memory, because registers are scarce.
struct Share {
  int e, row, channel;  // e: of WARP_TILE
  bool exists;
  __device__ __forceinline__ Share(const Part& part, int warp, int lane) {
    e = lane % PREPARING * V, row = lane / PREPARING;
    int mine = part.channel + warp * WARP_TILE + e;
    channel = min(mine, part.end - V);
    exists = mine < part.end;
  }
};
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
  int last_channel = part.end - 1, last = q.length - 1;
  // The sums for the bias and D lie in shared memory while the walks need the registers.
  float *dbias_at = me.first + WARP_TILE + me.lane * V, *dskip_at = dbias_at + 32 * V;
#pragma unroll
  for (int v = 0; v < V; v++) dbias_at[v] = dskip_at[v] = 0.f;

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
      int at = min(sample.part.channel + warp * WARP_TILE, sample.part.end - 1);
      prefetch(column(sample.u, d.u, at).at(token));
      prefetch(column(sample.delta, d.delta, at).at(token));
      prefetch(column(sample.dout, q.dout, at).at(token));
      prefetch(column(sample.z, q.z, at).at(token));
    }
    stage_BC<WARPS>(rows, q, d, part, way, me.lane, warp);
    bool gated = q.z.data;
    Share own(sample.part, warp, me.lane);
    int unread = sample.unread;
    float bias[V];
#pragma unroll
    for (int v = 0; v < V; v++) bias[v] = d.bias ? d.bias[own.channel + v] : 0.f;
    Column<const Act> us = column(sample.u, d.u, own.channel), zs = column(sample.z, q.z, own.channel);
    Column<const Act> deltas = column(sample.delta, d.delta, own.channel);
    Column<const Act> douts = column(sample.dout, q.dout, own.channel);
#pragma unroll 1
    for (int batch = 0; batch < CHUNK / ROWS; batch += BATCH) {
      Acts raw_u[BATCH], raw_delta[BATCH], raw_dout[BATCH], raw_z[BATCH];  // all in flight at once
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
        int token = min(way.token((batch + j) * ROWS + own.row), last);
        raw_u[j] = at_token(us, token), raw_delta[j] = at_token(deltas, token);
        raw_dout[j] = at_token(douts, token), raw_z[j] = at_token(zs, token);
      }
#pragma unroll
      for (int j = 0; j < BATCH; j++) {
        int p = (batch + j) * ROWS + own.row, token = way.token(p), at = p * WARP_TILE + own.e;
        bool has = token <= last && own.exists;
        float u[V], delta[V], dout[V], z[V], dt[V], add[V], dy[V];
        raw_u[j].unpack(u), raw_delta[j].unpack(delta);
        raw_dout[j].unpack(dout), raw_z[j].unpack(z);
#pragma unroll
        for (int v = 0; v < V; v++) {
          float raw = delta[v] + bias[v], gate = z[v] * sigmoid(z[v]);
          dt[v] = has ? (q.softplus ? softplus(raw) : raw) : 0.f;
          add[v] = dt[v] * u[v];
          dy[v] = has && token != unread ? dout[v] * (gated ? gate : 1.f) : 0.f;
        }
        put(me.step + at, dt), put(me.add + at, add), put(me.grad + at, dy);
      }
    }
    const float* kept =
        (const float*)address((const char*)sample.kept, chunk * NP / 4 + me.s, q.channels * 16);
    int last_channel = sample.part.end - 1;
    int c0 = sample.part.channel + warp * WARP_TILE + 2 * me.group, c1 = min(c0 + 1, last_channel);
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
    bool at_start = i + 1 == chunks && sample.part.segment == (d.reverse ? q.segments - 1 : 0);
    if (at_start && q.first_token) {
      float sum[2] = {me.dh[0][0] + me.dh[0][1] + me.dh[0][2] + me.dh[0][3],
                      me.dh[1][0] + me.dh[1][1] + me.dh[1][2] + me.dh[1][3]};
      spread_sum<LPT, 1>(sum, me.lane);
      me.first[me.group * 2 + me.s * 2 / LPT] = sum[0];
    }
    __syncthreads();

    // The sums of all warps for B and C.
    constexpr int FOURS = NP / 2, AT_ONCE = 32 / FOURS;  // of a token; tokens of a warp
#pragma unroll 1
    for (int p = warp * AT_ONCE + me.lane / FOURS; p < CHUNK; p += WARPS * AT_ONCE) {
      int token = way.token(p), four = me.lane % FOURS * 4;
      const float* from = scratch + 4 * TILE + sums_at(p / 2) + p % 2 * 2 * NP + four;
      float4 sum = load4(from);
#pragma unroll
      for (int w = 1; w < WARPS; w++) {
        float4 more = load4(from + w * WARP_FLOATS);
        sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
      }
      if (token <= last) *(float4*)(sample.dBC + (long long)token * 2 * NP + four) = sum;
    }
    if (together && second) __syncthreads();
    int first = at_start ? (d.reverse ? last : 0) : -1;
    bool shared_u = q.shared_u, shared_delta = q.shared_delta;
    auto finish = [&](auto is_second) {
      constexpr bool Second = decltype(is_second)::value;
      Share own(sample.part, warp, me.lane);
      Column<const Act> us = column(sample.u, d.u, own.channel);
      Column<const Act> zs = column(sample.z, q.z, own.channel);
      Column<const Act> douts = column(sample.dout, q.dout, own.channel);
      Column<float> ys = dense_column(sample.y + own.channel, q.channels);
      Column<float> some_du = dense_column(sample.some_du + own.channel, q.channels);
      Column<float> some_ddelta = dense_column(sample.some_ddelta + own.channel, q.channels);
      Column<Act> dus = column(sample.du, d.du, own.channel);
      Column<Act> dzs = column(sample.dz, q.dz, own.channel);
      Column<Act> ddeltas = column(sample.ddelta, d.ddelta, own.channel);
      float skip[V], dbias[V], dskip[V];
#pragma unroll
      for (int v = 0; v < V; v++) skip[v] = d.D ? d.D[own.channel + v] : 0.f;
      from_tile(dbias, dbias_at), from_tile(dskip, dskip_at);
#pragma unroll 1
      for (int batch = 0; batch < CHUNK / ROWS; batch += BATCH) {
        Acts raw_u[BATCH], raw_z[BATCH], raw_dout[BATCH];  // all in flight at once
        Floats raw_y[BATCH], other_du[BATCH], other_ddelta[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
          int token = min(way.token((batch + j) * ROWS + own.row), last);
          raw_u[j] = at_token(us, token);
          if (Second && gated) {
            raw_z[j] = at_token(zs, token), raw_dout[j] = at_token(douts, token);
            raw_y[j] = at_token(ys, token);
          }
          if (Second && shared_u) other_du[j] = at_token(some_du, token);
          if (Second && shared_delta) other_ddelta[j] = at_token(some_ddelta, token);
        }
#pragma unroll
        for (int j = 0; j < BATCH; j++) {
          int p = (batch + j) * ROWS + own.row, at = p * WARP_TILE + own.e, token = way.token(p);
          bool has = token <= last && own.exists;
          float u[V], dt[V], add[V], dy[V], decayed[V], du[V], ddelta[V];
          raw_u[j].unpack(u);
          from_tile(dt, me.step + at), from_tile(add, me.add + at);
          from_tile(dy, me.grad + at), from_tile(decayed, me.decayed + at);
#pragma unroll
          for (int v = 0; v < V; v++) {
            du[v] = fmaf(dt[v], add[v], skip[v] * dy[v]);
            float slope = q.softplus ? 1.f - ex2(-dt[v] * LOG2E) : 1.f;
            ddelta[v] = has ? fmaf(u[v], add[v], LN2 * decayed[v]) * slope : 0.f;
            dbias[v] += ddelta[v];
            dskip[v] = fmaf(dy[v], u[v], dskip[v]);
          }
          if (token == first && has) {
            float z[V] = {}, unseen[V];
            at_token(douts, token).unpack(unseen);
            if (gated) at_token(zs, token).unpack(z);
#pragma unroll
            for (int v = 0; v < V; v++) {
              if (q.first_token) du[v] += me.first[own.e + v];
              if (d.masked) {  // only the skip connection reads this token
                if (gated) unseen[v] *= z[v] * sigmoid(z[v]);
                du[v] = fmaf(skip[v], unseen[v], du[v]);
                dskip[v] = fmaf(unseen[v], u[v], dskip[v]);
              }
            }
          }
          if (!has) continue;
          if (shared_u && !Second) {
            put(some_du.at(token), du);
          } else {
            if (Second && shared_u) add_to(du, other_du[j]);
            put(dus.at(token), du);
          }
          if (shared_delta && !Second) {
            put(some_ddelta.at(token), ddelta);
          } else {
            if (Second && shared_delta) add_to(ddelta, other_ddelta[j]);
            put(ddeltas.at(token), ddelta);
          }
          if (Second && gated) {
            float z[V], dout[V], y[V];
            raw_z[j].unpack(z), raw_dout[j].unpack(dout), raw_y[j].unpack(y);
#pragma unroll
            for (int v = 0; v < V; v++) {
              float open = sigmoid(z[v]), slope = open * fmaf(z[v], 1.f - open, 1.f);
              y[v] = dout[v] * y[v] * slope;
            }
            put(dzs.at(token), y);
          }
        }
      }
      put(dbias_at, dbias), put(dskip_at, dskip);
    };
    if (second)
      finish(Yes{});
    else
      finish(No{});
    if (together && !second) __syncthreads();
  }

  part = sample.part;
  channel0 = part.channel + warp * WARP_TILE;
  Share own(part, warp, me.lane);
  if (STATES_GIVEN && q.dstart && part.segment == (d.reverse ? q.segments - 1 : 0))
#pragma unroll
    for (int c = 0; c < 2; c++)
#pragma unroll
      for (int n = 0; n < 4; n++) {
        int mine = channel0 + 2 * me.group + c, state = me.s * 4 + n;
        if (mine < part.end && state < q.states)
          q.dstart[((long long)part.b * q.channels + mine) * q.states + state] = me.dh[c][n];
      }
  long long row = (long long)(part.b * q.directions + direction) * q.segments + part.segment;
#pragma unroll
  for (int c = 0; c < 2; c++)
    if (channel0 + 2 * me.group + c < part.end)
      *(float4*)(q.dA + (row * q.channels + channel0 + 2 * me.group + c) * NP + me.s * 4) =
          make_float4(me.dA[c][0], me.dA[c][1], me.dA[c][2], me.dA[c][3]);
  float dbias[V], dskip[V];
  from_tile(dbias, dbias_at), from_tile(dskip, dskip_at);
#pragma unroll
  for (int v = 0; v < V; v++) {
#pragma unroll
    for (int step = PREPARING; step < 32; step *= 2) {
      dskip[v] += from_lane_xor(dskip[v], step);
      dbias[v] += from_lane_xor(dbias[v], step);
    }
    if (own.row == 0 && own.exists) {
      q.dD[row * 2 * q.channels + own.channel + v] = dskip[v];
      q.dD[(row * 2 + 1) * q.channels + own.channel + v] = dbias[v];
    }
  }
}
