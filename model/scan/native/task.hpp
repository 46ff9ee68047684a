// The parameters of the scan, and the state of one of its tasks.
#pragma once
#include <type_traits>

#include "recurrence.hpp"

constexpr int CHUNK = 64;  // tokens between kept states; the states that backward recomputes fit in L2

extern "C" {

// One direction. N is a multiple of GROUP. B, C: (B, L, G, N), or (D, N) where constant; A: (D, N);
// D, bias: (D,) or null; start, last: the states (B, D, N) before and after it, or null.
// Gradients: dA (B, D, N); dD, dbias (B, D); dB, dC (blocks, B, L, G, N), or (B, D, N) where constant:
// to be summed over the first dimension. Where both passes name the same tensor, the gradient is that
// of both. dstart, dlast: (B, D, N) or null.
struct Pass {
    Tensor3 u, delta;
    const float *A, *B, *C, *D, *bias, *start;
    float *states, *last;
    int64_t constant_B, constant_C, reverse, masked;
    Tensor3 du, ddelta;
    float *dA, *dB, *dC, *dD, *dbias, *dstart;
    const float* dlast;
};

struct Job {
    int64_t batch, channels, length, size, groups;  // B, D, L, N, G
    int64_t softplus, first_token, num_passes, num_threads;
    Pass passes[2];
    Tensor3 z, out, pre_gate, dout, dz;
};
}

// Calls f with a std::bool_constant for each flag.
template <typename F>
void specialise(const F& f) {
    f();
}
template <typename F, typename... Flags>
void specialise(const F& f, bool flag, Flags... rest) {
    if (flag)
        specialise([&](auto... others) { f(std::true_type{}, others...); }, rest...);
    else
        specialise([&](auto... others) { f(std::false_type{}, others...); }, rest...);
}

// One task and its workspace. Index (n, v) of a state-shaped array is n * VECS + v.
class Task {
  public:
    Task(const Job& job, int64_t index, bool backward) : job(job), size(job.size), backward(backward) {
        group_blocks = ceil_div(job.channels / job.groups, WIDTH), blocks = group_blocks * job.groups;
        chunks = ceil_div(job.length, CHUNK);
        sample = index / blocks, block = index % blocks;
        columns = columns_of(index, job.channels, job.groups);

        const int64_t tokens = job.length * VECS, states = size * VECS, group = CHUNK * GROUP * VECS;
        workspace.reset(backward ? 6 * tokens + 7 * states + 2 * group : 3 * tokens + 4 * states);
        for (Tile* tile : {&u, &delta, &y}) *tile = workspace.tile(job.length);
        for (Vec** vectors : {&A, &B, &C, &state}) *vectors = workspace.take(states);
        if (!backward) return;
        for (Tile* tile : {&slope, &du, &ddelta}) *tile = workspace.tile(job.length);
        for (Vec** vectors : {&dA, &dB, &dC}) *vectors = workspace.take(states);
        decay = workspace.take(group), carried = workspace.take(group);
    }

    const Job& job;
    const int64_t size;  // N
    const bool backward;
    int64_t group_blocks, blocks, chunks, sample, block;
    Columns columns;
    Tile u, delta, slope;   // delta after softplus, and the slope of softplus there
    Tile y;                 // forward: the sum of read-outs; backward: the gradient of that sum
    Tile du, ddelta;
    Vec D[VECS], bias[VECS], steepest[VECS];  // steepest: the largest |A|
    Vec *A, *state, *dA;    // A times log2(e); state: h_t, or in backward the gradient of h_t
    Vec *B, *C, *dB, *dC;   // of constants
    Vec *decay, *carried;   // (CHUNK, GROUP, VECS): a_t and a_t h_{t-1}
    Vec dD[VECS], dbias[VECS];
    Tensor3 wanted[6];  // tensors whose columns the coming chunks will need
    int num_wanted = 0;

    // Where a (B, L, G, N) tensor has the given token for the task's group.
    int64_t row(int64_t token) const {
        return ((sample * job.length + token) * job.groups + block / group_blocks) * size;
    }
    // The task's part of the gradient of a B or C that is not constant.
    int64_t partial() const {
        return block % group_blocks * job.batch * job.length * job.groups * size;
    }
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

    // The task's channels of the (D, N) tensor ``from``, states first; padding is zero.
    void load_states(const float* from, Vec* to, float scale = 1.0f) const {
        float* values = reinterpret_cast<float*>(to);
        std::memset(to, 0, size * VECS * sizeof(Vec));
        for (int64_t c = 0; c < columns.count; ++c)
            for (int64_t n = 0; n < size; ++n)
                values[n * WIDTH + c] = from[(columns.first + c) * size + n] * scale;
    }
    void store_states(const Vec* from, float* to, bool add) const {
        const float* values = reinterpret_cast<const float*>(from);
        for (int64_t c = 0; c < columns.count; ++c)
            for (int64_t n = 0; n < size; ++n) {
                float& element = to[(columns.first + c) * size + n];
                element = (add ? element : 0.0f) + values[n * WIDTH + c];
            }
    }
    // Where the sample's part of a (B, D, N) tensor starts.
    int64_t states_of_sample() const { return sample * job.channels * size; }

    void load_parameters(const Pass& pass) {
        load_states(pass.A, A, LOG2E);
        if (pass.constant_B) load_states(pass.B, B);
        if (pass.constant_C) load_states(pass.C, C);
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
        if (pass.start) return load_states(pass.start + states_of_sample(), state);
        for (int64_t n = 0; n < size; ++n)
            for (int v = 0; v < VECS; ++v)
                state[n * VECS + v] = job.first_token ? u.get(token(pass, 0), v) : Vec{};
    }

    // B or C of a group of states at a token, as ``mixing`` takes it.
    template <bool CONSTANT>
    auto mixing_at(const float* rows, const Vec* vectors, int64_t token, int64_t group) const {
        if constexpr (CONSTANT)
            return vectors + group * VECS;
        else
            return rows + row(token) + group;
    }

  private:
    // Bits of the larger magnitude; floats without sign are ordered as integers, NaN comes last.
    static IVec larger(IVec largest, Vec value) {
        const IVec other = as_bits(magnitude(value));
        return other > largest ? other : largest;
    }
};
