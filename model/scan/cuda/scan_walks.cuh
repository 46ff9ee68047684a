// The three walks of the backward pass through a chunk.
//
// A lane holds a tile of 2 channels x 4 states, so that the sums over states (for u and delta) and
// over channels (for B and C) are each half done within a lane. A warp owns 256 / NP channels of one
// direction.
//
// A chunk is walked three times. The first walk goes from the kept state to the end and leaves the
// state before every pair of tokens in shared memory. Then the pairs are taken from the last to the
// first: the second walk makes the decays and carried states of a pair in registers, the third goes
// back through it. This takes 1.9 exponentials per state and token and keeps no array of CHUNK x
// states in registers.
#pragma once
#include "scan.cuh"

constexpr int WARPS = BACKWARD_WARPS;      // per direction
constexpr int LPT = NP / 4;                // lanes that share 2 channels
constexpr int WARP_TILE = 64 / LPT;        // channels of a warp
constexpr int BACKWARD_TILE = WARPS * WARP_TILE;
constexpr int PAIRS = CHUNK / 2;
constexpr int V = WIDTH;                   // neighbouring channels that a lane prepares and finishes
constexpr int PREPARING = WARP_TILE / V;   // lanes that prepare a token
constexpr int ROWS = 32 / PREPARING;       // tokens that a warp prepares at a time
// Tokens that a lane prepares at a time. More of them would spill registers.
constexpr int BATCH = 2 / V;

// Shared memory of one warp, in floats. The sums for B and C of a pair of tokens take the place of
// the state before it, once that has been read; the first pair's state is read from memory.
constexpr int TILE = CHUNK * WARP_TILE, SLOT = 256, SLOTS = NP <= 32 ? PAIRS - 1 : PAIRS;
constexpr int TOTALS = 128;  // V for the bias and V for D of each lane
constexpr int WARP_FLOATS = 4 * TILE + SLOTS * SLOT + WARP_TILE + TOTALS;
constexpr int ROW_FLOATS = CHUNK * 2 * NP;  // of a direction: B and C
__device__ __forceinline__ int sums_at(int pair) {
  if (pair > 0) return (pair - 1) * SLOT;
  return NP <= 32 ? SLOT / 2 : (PAIRS - 1) * SLOT;
}

struct Tile {
  float *step, *add, *grad;  // CHUNK x WARP_TILE each: dt; dt u, later sum dw B; dy
  float* decayed;            // later sum of the decays' gradients, times A
  float* slots;
  // WARP_TILE: the step from the kept state of a lane's first channel to that of its second, then
  // the gradient of the start state. It lies here because registers are scarce.
  float* first;
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

// This lane's values for a pair of tokens; `tile` and `rows` point to the pair's first token.
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
  // How many sums a lane is left with, and which ones they are; see spread_sum.
  constexpr int OWNED = LPT < 4 ? 4 / LPT : 1, SUMMED = 32 / LPT < 8 ? 8 * LPT / 32 : 1;
  int owned = me.s * 4 / LPT, summed = me.group * 8 * LPT / 32;
  // The sums over states overwrite two tiles: that of `dwritten` ADD, that of `ddecay` DECAYED.
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
      load_state(h, kept, int(at.tile[me.first - me.step]));  // me.first of the group
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
