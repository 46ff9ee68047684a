// What the scan is asked for, and what one task of it works on.
#pragma once
#include "recurrence.hpp"

constexpr int CHUNK = 64;  // tokens between kept states; what backward recomputes of them fits L2

extern "C" {

// One direction. N is a multiple of GROUP. B, C: (B, L, N); A: (D, N); D, bias: (D,) or null.
// Gradients: dA (B, D, N); dD, dbias (B, D); dB, dC (blocks, B, L, N): to be summed over the first
// dimension. Where both passes name the same tensor, the gradient is that of both.
struct Pass {
    Tensor3 u, delta;
    const float *A, *B, *C, *D, *bias;
    float* states;
    int64_t reverse, masked;
    Tensor3 du, ddelta;
    float *dA, *dB, *dC, *dD, *dbias;
};

struct Job {
    int64_t batch, channels, length, size;  // B, D, L, N
    int64_t softplus, first_token, num_passes, num_threads;
    Pass passes[2];
    Tensor3 z, out, pre_gate, dout, dz;
};
}

// What one task works on. Index (n, v) of a state-shaped array is n * VECS + v.
class Task {
  public:
    Task(const Job& job, int64_t index, bool backward) : job(job), size(job.size), backward(backward) {
        blocks = ceil_div(job.channels, WIDTH), chunks = ceil_div(job.length, CHUNK);
        sample = index / blocks, block = index % blocks;
        columns = columns_of(index, job.channels);

        const int64_t tokens = job.length * VECS, states = size * VECS, group = CHUNK * GROUP * VECS;
        workspace.reset(backward ? 6 * tokens + 3 * states + 2 * group : 3 * tokens + 2 * states);
        for (Tile* tile : {&u, &delta, &y}) *tile = workspace.tile(job.length);
        A = workspace.take(states), state = workspace.take(states);
        if (!backward) return;
        for (Tile* tile : {&slope, &du, &ddelta}) *tile = workspace.tile(job.length);
        dA = workspace.take(states);
        decay = workspace.take(group), carried = workspace.take(group);
    }

    const Job& job;
    const int64_t size;  // N
    const bool backward;
    int64_t blocks, chunks, sample, block;
    Columns columns;
    Tile u, delta, slope;   // delta after softplus, and the slope of softplus there
    Tile y;                 // forward: the sum of read-outs; backward: the gradient of that sum
    Tile du, ddelta;
    Vec D[VECS], bias[VECS], steepest[VECS];  // steepest: the largest |A|
    Vec *A, *state, *dA;    // A times log2(e); state: h_t, or in backward the gradient of h_t
    Vec *decay, *carried;   // (CHUNK, GROUP, VECS): a_t and a_t h_{t-1}
    Vec dD[VECS], dbias[VECS];
    Tensor3 wanted[6];  // whose columns the chunks to come will need
    int num_wanted = 0;

    // Where a (B, L, N) tensor has the given token.
    int64_t row(int64_t token) const { return (sample * job.length + token) * size; }
    // The token that the pass scans i-th.
    int64_t token(const Pass& pass, int64_t i) const {
        return pass.reverse ? job.length - 1 - i : i;
    }
    // The tokens that the pass scans as its k-th chunk.
    Span chunk(const Pass& pass, int64_t k) const {
        const int64_t begin = k * CHUNK, end = std::min(begin + CHUNK, job.length);
        if (pass.reverse) return {job.length - end, job.length - begin};
        return {begin, end};
    }
    // The kept state before the k-th chunk in scan order.
    float* state_before(const Pass& pass, int64_t k) const {
        return pass.states + ((sample * blocks + block) * chunks + k) * size * WIDTH;
    }

    void want(const Tensor3& tensor) {
        if (tensor.data) wanted[num_wanted++] = tensor;
    }
    // Fetches a token's columns; scans do it token by token, for a burst of misses would stall.
    void prefetch_wanted(int64_t token) const {
        for (int i = 0; i < num_wanted; ++i) {
            const Tensor3& from = wanted[i];
            prefetch(from.data + sample * from.batch + columns.first * from.channel + token * from.token);
        }
    }

    void load_parameters(const Pass& pass) {
        float* values = reinterpret_cast<float*>(A);
        std::memset(A, 0, size * VECS * sizeof(Vec));
        for (int64_t c = 0; c < columns.count; ++c)
            for (int64_t n = 0; n < size; ++n)
                values[n * WIDTH + c] = pass.A[(columns.first + c) * size + n] * LOG2E;
        for (int v = 0; v < VECS; ++v) {
            D[v] = channel_values(pass.D, columns, v), bias[v] = channel_values(pass.bias, columns, v);
            IVec largest{};
            for (int64_t n = 0; n < size; ++n) largest = larger(largest, A[n * VECS + v]);
            steepest[v] = as_float(largest);
        }
    }

    // Fills delta and, for backward, slope.
    void load_delta(const Pass& pass, const Span& tokens) const {
        read_columns(pass.delta, columns, tokens, delta);
        if (!pass.bias && !job.softplus) return;
        for (int64_t t = tokens.begin; t < tokens.end; ++t)
            for (int v = 0; v < VECS; ++v) {
                const Vec raw = delta.get(t, v) + bias[v];
                const Vec tail = exp2v(magnitude(raw) * -LOG2E);
                if (backward) slope.set(t, v, (raw > 0.0f ? splat(1.0f) : tail) / (1.0f + tail));
                delta.set(t, v, job.softplus ? softplus(raw, tail) : raw);
            }
    }

    // Whether all exponents of these tokens are within EXP2_TAME, as they nearly always are.
    bool is_tame(const Span& tokens) const {
        for (int v = 0; v < VECS; ++v) {
            IVec largest{};
            for (int64_t t = tokens.begin; t < tokens.end; ++t) largest = larger(largest, delta.get(t, v));
            const Vec exponent = as_float(largest) * steepest[v];
            for (int lane = 0; lane < LANES; ++lane)
                if (!(exponent[lane] <= EXP2_TAME)) return false;
        }
        return true;
    }

    void start_state(const Pass& pass) const {
        for (int64_t n = 0; n < size; ++n)
            for (int v = 0; v < VECS; ++v)
                state[n * VECS + v] = job.first_token ? u.get(token(pass, 0), v) : Vec{};
    }

  private:
    // Bits of the larger magnitude; floats without sign are ordered as integers, NaN comes last.
    static IVec larger(IVec largest, Vec value) {
        const IVec other = as_bits(magnitude(value));
        return other > largest ? other : largest;
    }
};
