// One step of the recurrence, for VECS vectors of channels and GROUP states of each.
#pragma once
#include "tile.hpp"

constexpr int GROUP = 8;  // states that are computed together

// h = 2^(delta A) h + written B, in state, and adds C h to sums; MASKED leaves this token's write out
// of the latter. Index (n, v) of A and state is n * VECS + v.
template <bool MASKED, bool TAME>
INLINE void advance(const Vec* A, const float* B, const float* C, const Vec* delta, const Vec* written,
                    Vec* state, Vec* sums) {
#pragma GCC unroll 16
    for (int n = 0; n < GROUP; ++n)
        for (int v = 0; v < VECS; ++v) {
            const int at = n * VECS + v;
            const Vec carried = exp2v<TAME>(delta[v] * A[at]) * state[at];
            const Vec h = written[v] * B[n] + carried;
            state[at] = h;
            sums[v] += (MASKED ? carried : h) * C[n];
        }
}
