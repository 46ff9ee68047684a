// The recurrence, token by token: the forward scan, and two passes that only find end states.
//
// A lane holds 8 states of one channel in registers, and LPC neighbouring lanes share a
// channel. The decays of a token are thus 8 independent exponentials, and the read-out is a sum within
// the lane and over LPC lanes. Work done once per channel and token (softplus, gate, skip) is shared
// out: of LPC tokens each lane does one, and hands the step on by a shuffle. Only B and C go through
// shared memory, as float32, a chunk at a time. Each direction is one warp, and the warps wait for
// each other once, in the middle.
#pragma once
#include "scan.cuh"

constexpr int LPC = NP / 8;             // lanes per channel
constexpr int FORWARD_TILE = 32 / LPC;  // channels per warp
constexpr int GROUP = LPC > 2 ? LPC : 2;  // tokens between loops
constexpr int OWN = GROUP / LPC;        // of these, the tokens that a lane prepares

// READ is the scan itself. END leaves the state that a segment ends with when it starts from zero
// and the sum of its steps, over which the state decays by exp(A sum). ADJOINT does the same for
// the gradient of the state, which runs the other way: from the last token to the first.
enum Mode { READ, END, ADJOINT };

struct Lane {
  int lane, s, channel;  // s of LPC: which states, and which tokens of a group
  bool has;              // whether the channel exists
  float A[8], h[8];      // A times log2 e
};

__device__ __forceinline__ void load8(float (&v)[8], const float* from, long long four_stride) {
#pragma unroll
  for (int i = 0; i < 2; i++) {
    float4 f = *(const float4*)(from + i * four_stride);
    v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
  }
}
__device__ __forceinline__ void store8(float* to, long long four_stride, const float (&v)[8]) {
#pragma unroll
  for (int i = 0; i < 2; i++)
    *(float4*)(to + i * four_stride) = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
}

// The state that a segment starts from: the scan's own start carried through the segments before.
__device__ __forceinline__ void start_state(Lane& me, const Scan& q, const Direction& d,
                                            const Part& part, int direction) {
  float first = value(*d.u.column(part.b, me.channel).at(d.reverse ? q.length - 1 : 0));
#pragma unroll
  for (int n = 0; n < 8; n++) me.h[n] = q.first_token && me.s * 8 + n < q.states ? first : 0.f;
  if (STATES_GIVEN && q.start) {
    const float* start = q.start + ((long long)part.b * q.channels + me.channel) * q.states;
#pragma unroll
    for (int n = 0; n < 8; n++) me.h[n] = me.s * 8 + n < q.states ? start[me.s * 8 + n] : 0.f;
  }
  int before = d.reverse ? q.segments - 1 - part.segment : part.segment;
#pragma unroll 1
  for (int i = 0; i < before; i++) {
    int segment = d.reverse ? q.segments - 1 - i : i;
    float end[8];
    load8(end, q.ends + fours(q, part.b, direction, q.segments, segment, 2 * me.s, me.channel),
          4ll * q.channels);
    long long row = (long long)(part.b * q.directions + direction) * q.segments + segment;
    float steps = q.steps[row * q.channels + me.channel];
#pragma unroll
    for (int n = 0; n < 8; n++) me.h[n] = fmaf(ex2(steps * me.A[n]), me.h[n], end[n]);
  }
}

// One token: dt its step, x what it adds (times B), y what it reads (of C).
template <Mode M, bool Masked>
__device__ __forceinline__ float advance(Lane& me, float dt, float x, const float* B, const float* C) {
  float b[8], c[8], y = 0.f;
  load8(b, (M == ADJOINT ? C : B) + me.s * 8, 4);
  if (M == READ) load8(c, C + me.s * 8, 4);
#pragma unroll
  for (int n = 0; n < 8; n++) {
    float a = ex2(dt * me.A[n]);
    if (M == ADJOINT) {
      me.h[n] = a * fmaf(x, b[n], me.h[n]);
    } else if (Masked) {
      float carried = a * me.h[n];
      y = fmaf(carried, c[n], y);
      me.h[n] = fmaf(x, b[n], carried);
    } else {
      me.h[n] = fmaf(a, me.h[n], x * b[n]);
      if (M == READ) y = fmaf(me.h[n], c[n], y);
    }
  }
  return y;
}

// A group of tokens; y gets the read-out of this lane's own.
template <Mode M, bool Masked>
__device__ __forceinline__ void advance_group(Lane& me, const float (&dt)[OWN], const float (&x)[OWN],
                                              const float* rows, float (&y)[OWN]) {
#pragma unroll
  for (int j = 0; j < OWN; j++) {
    float read[LPC];
#pragma unroll
    for (int s = 0; s < LPC; s++) {
      const float* row = rows + (j * LPC + s) * 2 * NP;
      float step = LPC == 1 ? dt[j] : __shfl_sync(ALL_LANES, dt[j], s, LPC);
      float add = LPC == 1 ? x[j] : __shfl_sync(ALL_LANES, x[j], s, LPC);
      read[s] = advance<M, Masked>(me, step, add, row, row + NP);
    }
    if (M == READ) {
      spread_sum<LPC, 1>(read, me.lane);
      y[j] = read[0];
    }
  }
}

// Prefetches the rows of a chunk, one line per token and array.
__device__ __forceinline__ void prefetch_chunk(const Scan& q, const Direction& d, const Part& part,
                                               int chunk, int channel, int lane) {
  int token = min(chunk * CHUNK + lane % CHUNK, q.length - 1);
  prefetch((lane < CHUNK ? d.u : d.delta).column(part.b, channel).at(token));
  const Strided<const Act>& other = lane < CHUNK ? q.z : q.dout;
  if (other.data) prefetch(other.column(part.b, channel).at(token));
}

template <Mode M> __device__ __forceinline__ void walk(const Scan& q) {
  SHARED_MEMORY(shared);
  Part part = part_of_block<FORWARD_TILE>(q);
  Lane me;
  me.lane = threadIdx.x % 32;
  int direction = __shfl_sync(ALL_LANES, int(threadIdx.x / 32), 0);  // uniform to the compiler, too
  const Direction& d = q.direction[direction];
  float* rows = (float*)shared + direction * CHUNK * 2 * NP;
  me.s = me.lane % LPC;
  me.has = part.channel + me.lane / LPC < part.end;
  me.channel = min(part.channel + me.lane / LPC, part.end - 1);
#pragma unroll
  for (int n = 0; n < 8; n++) {
    int state = me.s * 8 + n;
    me.A[n] = state < q.states ? d.A[(long long)me.channel * q.states + state] * LOG2E : 0.f;
    me.h[n] = 0.f;
  }
  if (M == READ) start_state(me, q, d, part, direction);
  float bias = d.bias ? d.bias[me.channel] : 0.f, skip = d.D ? d.D[me.channel] : 0.f, steps = 0.f;
  int backwards = M == ADJOINT ? !d.reverse : d.reverse;  // whether tokens are visited from the end
  int chunks = part.last_chunk - part.first_chunk, half = chunks / 2;
  int meeting = q.directions == 1 ? -1 : d.reverse ? chunks - half : half;

  Column<const Act> us = d.u.column(part.b, me.channel), deltas = d.delta.column(part.b, me.channel);
  Column<const Act> zs = q.z.column(part.b, me.channel), douts = q.dout.column(part.b, me.channel);
  Column<Act> outs = q.out.column(part.b, me.channel);
  Column<float> ys =
      dense_column(q.y + (long long)part.b * q.length * q.channels + me.channel, q.channels);
  bool gated = q.z.data, both = q.directions == 2, keep_total = q.keep_total, soft = q.softplus;
  int last = q.length - 1, unread = unread_token(q, d);
  zero_padding(rows, q, me.lane, 32);

  Act next_u[OWN], next_delta[OWN];
  auto fetch = [&](int first) {  // reads the tokens of a group that this lane prepares
#pragma unroll
    for (int j = 0; j < OWN; j++) {
      int token = max(min(first + (backwards ? -j : j) * LPC, last), 0);
      if (M != ADJOINT) next_u[j] = *us.at(token);
      next_delta[j] = *deltas.at(token);
    }
  };
  int begin = backwards ? part.last_chunk - 1 : part.first_chunk;
  fetch(Way(begin, backwards).token(me.s));
  for (int i = 0; i < chunks; i++) {
    if (M == READ && i == meeting) __syncthreads();
    int chunk = backwards ? begin - i : begin + i;
    int next = i + 1 == chunks ? chunk : backwards ? chunk - 1 : chunk + 1;
    bool second = !both || i >= meeting;
    prefetch_chunk(q, d, part, next, part.channel, me.lane);
    if (M == READ && q.kept && me.has)
      store8(q.kept + fours(q, part.b, direction, (q.length + CHUNK - 1) / CHUNK, chunk, 2 * me.s,
                            me.channel),
             4ll * q.channels, me.h);
    __syncwarp();
    Way way(chunk, backwards);
    stage_BC<1>(rows, q, d, part, way, me.lane, 0);
    __syncwarp();
#pragma unroll 1
    for (int group = 0; group < CHUNK / GROUP; group++) {
      int first = way.token(group * GROUP + me.s);
      float dt[OWN], x[OWN], u[OWN], y[OWN], partial[OWN];
      Act z[OWN];
#pragma unroll
      for (int j = 0; j < OWN; j++) {
        int token = first + way.way * j * LPC;
        bool has = token <= last;
        token = min(token, last);
        if (M == ADJOINT || (M == READ && second)) {
          if (gated) z[j] = *zs.at(token);
          if (M == READ && both) partial[j] = *ys.at(token);
        }
        float raw = value(next_delta[j]) + bias;
        dt[j] = has ? (soft ? softplus(raw) : raw) : 0.f;
        if (M != READ) steps += dt[j];
        if (M != ADJOINT) {
          u[j] = value(next_u[j]);
          x[j] = dt[j] * u[j];
        } else {
          float gate = gated ? value(z[j]) * sigmoid(value(z[j])) : 1.f;
          x[j] = has && token != unread ? value(*douts.at(token)) * gate : 0.f;
        }
      }
      fetch(first + way.way * GROUP);
      const float* group_rows = rows + group * GROUP * 2 * NP;
      if (M == READ && d.masked)
        advance_group<M, true>(me, dt, x, group_rows, y);
      else
        advance_group<M, false>(me, dt, x, group_rows, y);
      if (M != READ) continue;
#pragma unroll
      for (int j = 0; j < OWN; j++) {
        int token = first + way.way * j * LPC;
        bool has = token <= last && me.has;
        float total = fmaf(skip, u[j], token == unread ? 0.f : y[j]);
        if (second && both) total += partial[j];
        if (has && (!second || keep_total)) *ys.at(token) = total;
        if (second) {
          if (gated) total *= value(z[j]) * sigmoid(value(z[j]));
          if (has) store(outs.at(token), total);
        }
      }
    }
  }
  if (M == READ && meeting == chunks) __syncthreads();
  if (M == READ) {
    bool at_end = d.reverse ? part.segment == 0 : part.segment == q.segments - 1;
    if (q.last && at_end && me.has)
#pragma unroll
      for (int n = 0; n < 8; n++)
        if (me.s * 8 + n < q.states)
          q.last[((long long)(part.b * q.directions + direction) * q.channels + me.channel) * q.states +
                 me.s * 8 + n] = me.h[n];
    return;
  }
  steps = lanes_sum<LPC>(steps);
  if (!me.has) return;
  long long row = (long long)(part.b * q.directions + direction) * q.segments + part.segment;
  store8(q.ends + fours(q, part.b, direction, q.segments, part.segment, 2 * me.s, me.channel),
         4ll * q.channels, me.h);
  if (me.s == 0) q.steps[row * q.channels + me.channel] = steps;
}
