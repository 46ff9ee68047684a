// One step of the recurrence, for VECS vectors of channels and GROUP states of each.
#pragma once
#include "tile.hpp"

constexpr int GROUP = 8;  // states that are computed together

// B or C of state n for vector v of channels: a row of states that all channels share, or vectors of
// channels where every channel has its own.
INLINE float mixing(const float* row, int n, int) { return row[n]; }
INLINE Vec mixing(const Vec* vectors, int n, int v) { return vectors[n * VECS + v]; }

// h = 2^(delta A) h + written B, in state, and adds C h to sums; MASKED leaves this token's write out
// of the latter. Index (n, v) of A and state is n * VECS + v.
template <bool MASKED, bool TAME, typename InB, typename InC>
INLINE void advance(const Vec* A, const InB* B, const InC* C, const Vec* delta, const Vec* written,
                    Vec* state, Vec* sums) {
#pragma GCC unroll 16
    for (int n = 0; n < GROUP; ++n)
        for (int v = 0; v < VECS; ++v) {
            const int at = n * VECS + v;
            const Vec carried = exp2v<TAME>(delta[v] * A[at]) * state[at];
            const Vec h = written[v] * mixing(B, n, v) + carried;
            state[at] = h;
            sums[v] += (MASKED ? carried : h) * mixing(C, n, v);
        }
}
