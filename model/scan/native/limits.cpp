// The limit that `vmp bench scan` compares the scan with: its arithmetic alone, on values in L1.

#include "recurrence.hpp"

namespace {

// Threads share the rounds. The sums are used, because the compiler would otherwise drop the work.
template <typename Run>
void for_each_round(int64_t rounds, int64_t num_threads, const Run& run) {
    Vec total{};
#pragma omp parallel num_threads(static_cast<int>(num_threads))
    {
        Vec sums[VECS] = {};
        run(rounds / num_threads, sums);
#pragma omp critical
        for (const Vec& sum : sums) total += sum;
    }
    volatile float used = total[0];
    (void)used;
}

}  // namespace

extern "C" {

// Computes `count` exponentials.
void exponentials(int64_t count, int64_t num_threads) {
    constexpr int BUFFER = 64, UNROLLED = 8;
    for_each_round(count / (BUFFER * LANES), num_threads, [](int64_t rounds, Vec* sums) {
        Vec buffer[BUFFER];
        for (int i = 0; i < BUFFER; ++i) buffer[i] = splat(-0.1f * i);
        Vec partial[4] = {};
        for (int64_t r = 0; r < rounds; ++r) {
            const Vec scale = splat(1.0f + 1e-7f * static_cast<float>(r % 1024));
            for (int i = 0; i < BUFFER; i += UNROLLED)
#pragma GCC unroll 8
                for (int j = 0; j < UNROLLED; ++j) partial[j % 4] += exp2v<true>(buffer[i + j] * scale);
        }
        sums[0] += partial[0] + partial[1] + partial[2] + partial[3];
    });
}

// Computes `count` steps of the recurrence of one channel and state, each with its exponential.
void recurrences(int64_t count, int64_t num_threads) {
    constexpr int TOKENS = 16, STATES = 16;
    for_each_round(count / (TOKENS * STATES * WIDTH), num_threads, [](int64_t rounds, Vec* sums) {
        Vec A[STATES * VECS], state[STATES * VECS] = {}, delta[TOKENS][VECS], written[TOKENS][VECS];
        float B[TOKENS][STATES], C[TOKENS][STATES];
        for (int i = 0; i < STATES * VECS; ++i) A[i] = splat(-0.1f * i);
        for (int t = 0; t < TOKENS; ++t) {
            for (int v = 0; v < VECS; ++v) delta[t][v] = splat(0.01f * (t + 1)), written[t][v] = splat(1.0f);
            for (int n = 0; n < STATES; ++n) B[t][n] = C[t][n] = 0.1f * n;
        }
        for (int64_t r = 0; r < rounds; ++r)
            for (int t = 0; t < TOKENS; ++t)
                for (int n = 0; n < STATES; n += GROUP)
                    advance<false, true>(A + n * VECS, B[t] + n, C[t] + n, delta[t], written[t],
                                         state + n * VECS, sums);
    });
}
}
