// The selective scan, forward and backward, one or two directions: see model/scan/reference.py.
//
// A task owns WIDTH channels of one sample and walks all tokens of every pass (direction), CHUNK at
// a time; its lanes are channels, so a read-out needs no horizontal sum. The state h_t never leaves
// the core: forward keeps only the state before each chunk, backward recomputes a chunk from it.
// Results do not depend on the number of threads: every sum has a fixed order.
#include <cstdlib>
#include <initializer_list>

#include "tile.hpp"

constexpr int CHUNK = 32;  // tokens between kept states

extern "C" {

// One direction. B, C: (B, L, N); A: (D, N); D, bias: (D,) or null; states: see state_at.
struct Pass {
    Tensor3 u, delta;
    const float *A, *B, *C, *D, *bias;
    float* states;
    int64_t reverse, masked;
    // Gradients. dA: (B, D, N); dD, dbias: (B, D); dB, dC: (blocks, B, L, N), to be summed.
    Tensor3 du, ddelta;
    float *dA, *dB, *dC, *dD, *dbias;
    // Whether an earlier pass has already written these.
    int64_t add_du, add_ddelta, add_dB, add_dC, add_dD, add_dbias;
};

struct Job {
    int64_t batch, channels, length, size;  // B, D, L, N
    int64_t softplus, first_token, num_passes, num_threads;
    Pass passes[2];
    Tensor3 z, out, pre_gate, dout, dz;
};
}

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Memory of one thread: all that a task touches more than once.
struct Scratch {
    explicit Scratch(const Job& job, bool backward) {
        const int64_t size = job.size, vectors = size * VECS;
        const int64_t tile = CHUNK * VECS, chunk = backward ? CHUNK * vectors : 0;
        const int64_t total = 8 * tile + 3 * vectors + 2 * chunk + 2 * (size + LANES);
        memory_ = static_cast<Vec*>(std::aligned_alloc(64, total * sizeof(Vec)));
        Vec* next = memory_;
        auto take = [&next](int64_t count) { return (next += count) - count; };
        for (Tile* t : {&u, &delta, &slope, &written, &y, &gated, &du, &ddelta})
            *t = Tile{reinterpret_cast<float*>(take(tile))};
        A = take(vectors), state = take(vectors), dA = take(vectors);
        decay = take(chunk), carried = take(chunk);
        sum_B = take(size + LANES), sum_C = take(size + LANES);
    }
    Scratch(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    Tile u, delta, slope;  // slope: the derivative of softplus
    Tile written;          // delta * u, what a token writes to the state per unit of B
    Tile y, gated;         // read-out; in backward its gradient, before and after the gate
    Tile du, ddelta;
    Vec *A, *state, *dA;      // (N, VECS); A in powers of two; state or the adjoint carried on
    Vec *decay, *carried;     // (CHUNK, N, VECS): a_t and a_t h_{t-1}
    Vec *sum_B, *sum_C;       // (N,) lanes of the gradients of B_t and C_t

  private:
    Vec* memory_;
};

// One task's view of one pass.
struct Walk {
    const Job& job;
    const Pass& pass;
    int64_t batch, block;

    int64_t channel() const { return block * WIDTH; }
    int64_t channels() const {
        const int64_t left = job.channels - channel();
        return left < WIDTH ? left : WIDTH;
    }
    int64_t chunks() const { return ceil_div(job.length, CHUNK); }
    // The tokens of the chunk scanned k-th.
    Window window(int64_t k) const {
        int64_t begin = k * CHUNK, end = begin + CHUNK < job.length ? begin + CHUNK : job.length;
        if (pass.reverse) {
            const int64_t mirrored = job.length - end;
            end = job.length - begin, begin = mirrored;
        }
        return {batch, channel(), channels(), begin, end - begin};
    }
    // The row of the i-th scanned token of a window.
    int64_t row(const Window& at, int64_t i) const { return pass.reverse ? at.tokens - 1 - i : i; }
    // The kept state (N, VECS) before the k-th chunk.
    float* state_at(int64_t k) const {
        const int64_t blocks = ceil_div(job.channels, WIDTH);
        return pass.states + ((batch * blocks + block) * chunks() + k) * job.size * WIDTH;
    }
    const float* token_row(const float* tensor, int64_t token) const {
        return tensor + (batch * job.length + token) * job.size;
    }
    Vec channel_vector(const float* values, int v) const {  // of a (D,) tensor, zero-padded
        Vec result{};
        const int64_t count = channels() - v * LANES;
        if (values && count > 0)
            std::memcpy(&result, values + channel() + v * LANES,
                        (count < LANES ? count : LANES) * sizeof(float));
        return result;
    }
};

void load_A(const Walk& walk, Vec* A) {
    const int64_t size = walk.job.size;
    for (int64_t n = 0; n < size; ++n) {
        alignas(64) float row[WIDTH] = {};
        for (int64_t c = 0; c < walk.channels(); ++c)
            row[c] = walk.pass.A[(walk.channel() + c) * size + n] * LOG2E;
        std::memcpy(A + n * VECS, row, sizeof row);
    }
}

// Fills u, delta (after bias and softplus), written and, for backward, the slope of softplus.
template <bool BACKWARD>
void load_inputs(const Walk& walk, const Window& at, Scratch& s) {
    read_tile(walk.pass.u, at, s.u);
    read_tile(walk.pass.delta, at, s.delta);
    for (int v = 0; v < VECS; ++v) {
        const Vec bias = walk.channel_vector(walk.pass.bias, v);
        for (int64_t t = 0; t < at.tokens; ++t) {
            Vec delta = s.delta.get(t, v) + bias;
            if (walk.job.softplus) {
                if (BACKWARD) s.slope.set(t, v, sigmoid(delta));
                delta = softplus(delta);
            }
            s.delta.set(t, v, delta);
            s.written.set(t, v, delta * s.u.get(t, v));
        }
    }
}

void start_state(const Walk& walk, Scratch& s) {
    const int64_t size = walk.job.size;
    Vec first[VECS] = {};
    if (walk.job.first_token) {
        const int64_t token = walk.pass.reverse ? walk.job.length - 1 : 0;
        read_tile(walk.pass.u, {walk.batch, walk.channel(), walk.channels(), token, 1}, s.y);
        for (int v = 0; v < VECS; ++v) first[v] = s.y.get(0, v);
    }
    for (int64_t n = 0; n < size; ++n)
        for (int v = 0; v < VECS; ++v) s.state[n * VECS + v] = first[v];
}

// Reads a chunk's states out into y; the state after the chunk ends up in s.state.
// N > 0 fixes the state size at compile time and keeps the states of a vector in registers.
template <int N, bool MASKED>
void read_out(const Walk& walk, const Window& at, Scratch& s, bool first_chunk) {
    const int64_t size = N ? N : walk.job.size;
    for (int v = 0; v < VECS; ++v) {
        Vec registers[N ? N : 1];
        if (N)
            for (int n = 0; n < N; ++n) registers[n] = s.state[n * VECS + v];
        for (int64_t i = 0; i < at.tokens; ++i) {
            const int64_t t = walk.row(at, i);
            const float* B = walk.token_row(walk.pass.B, at.token + t);
            const float* C = walk.token_row(walk.pass.C, at.token + t);
            const Vec delta = s.delta.get(t, v), written = s.written.get(t, v);
            Vec sums[4] = {};
            auto step = [&](int64_t n, Vec& h) {
                const Vec carried = exp2v(delta * s.A[n * VECS + v]) * h;
                h = written * B[n] + carried;
                sums[n % 4] += (MASKED ? carried : h) * C[n];
            };
            if (N) {
#pragma GCC unroll 32
                for (int n = 0; n < N; ++n) step(n, registers[n]);
            } else {
                for (int64_t n = 0; n < size; ++n) step(n, s.state[n * VECS + v]);
            }
            if (!(MASKED && first_chunk && i == 0))
                s.y.set(t, v, s.y.get(t, v) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
        }
        if (N)
            for (int n = 0; n < N; ++n) s.state[n * VECS + v] = registers[n];
    }
}

template <int N>
void forward_task(const Job& job, int64_t batch, int64_t block, Scratch& s) {
    for (int64_t index = 0; index < job.num_passes; ++index) {
        const Pass& pass = job.passes[index];
        const Walk walk{job, pass, batch, block};
        const bool last = index + 1 == job.num_passes;
        load_A(walk, s.A);
        start_state(walk, s);
        for (int64_t k = 0; k < walk.chunks(); ++k) {
            const Window at = walk.window(k);
            if (pass.states) std::memcpy(walk.state_at(k), s.state, job.size * WIDTH * sizeof(float));
            load_inputs<false>(walk, at, s);
            if (index > 0) read_tile(job.out, at, s.y);
            for (int v = 0; v < VECS; ++v) {
                const Vec D = walk.channel_vector(pass.D, v);
                for (int64_t t = 0; t < at.tokens; ++t)
                    s.y.set(t, v, D * s.u.get(t, v) + (index > 0 ? s.y.get(t, v) : Vec{}));
            }
            if (pass.masked)
                read_out<N, true>(walk, at, s, k == 0);
            else
                read_out<N, false>(walk, at, s, k == 0);
            if (last && job.z.data) {
                if (job.pre_gate.data) write_tile(job.pre_gate, at, s.y);
                read_tile(job.z, at, s.gated);
                for (int v = 0; v < VECS; ++v)
                    for (int64_t t = 0; t < at.tokens; ++t) {
                        const Vec z = s.gated.get(t, v);
                        s.y.set(t, v, s.y.get(t, v) * (z * sigmoid(z)));
                    }
            }
            write_tile(job.out, at, s.y);
        }
    }
}

// Leaves the gradient of the pre-gate sum in s.gated and, on the first pass, writes that of z.
void load_dout(const Walk& walk, const Window& at, Scratch& s, bool first_pass) {
    const Job& job = walk.job;
    read_tile(job.dout, at, s.gated);
    if (!job.z.data) return;
    read_tile(job.z, at, s.du);
    if (first_pass) read_tile(job.pre_gate, at, s.y);
    for (int v = 0; v < VECS; ++v)
        for (int64_t t = 0; t < at.tokens; ++t) {
            const Vec z = s.du.get(t, v), dout = s.gated.get(t, v), gate = sigmoid(z);
            s.gated.set(t, v, dout * z * gate);
            if (first_pass)
                s.y.set(t, v, dout * s.y.get(t, v) * (gate * (1.0f + z * (1.0f - gate))));
        }
    if (first_pass) write_tile(job.dz, at, s.y);
}

// Recomputes decay and carried of a chunk from its kept state.
template <int N>
void recompute(const Walk& walk, const Window& at, int64_t k, Scratch& s) {
    const int64_t size = N ? N : walk.job.size;
    const float* kept = walk.state_at(k);
    for (int v = 0; v < VECS; ++v) {
        Vec registers[N ? N : 1];
        Vec* states = s.sum_B;  // a general N keeps its states in memory that is free until later
        for (int64_t n = 0; n < size; ++n)
            (N ? registers : states)[n] = load(kept + n * WIDTH + v * LANES);
        for (int64_t i = 0; i < at.tokens; ++i) {
            const int64_t t = walk.row(at, i);
            const float* B = walk.token_row(walk.pass.B, at.token + t);
            const Vec delta = s.delta.get(t, v), written = s.written.get(t, v);
            auto step = [&](int64_t n, Vec& h) {
                const int64_t to = (t * size + n) * VECS + v;
                const Vec decay = exp2v(delta * s.A[n * VECS + v]);
                const Vec carried = decay * h;
                s.decay[to] = decay, s.carried[to] = carried;
                h = written * B[n] + carried;
            };
            if (N) {
#pragma GCC unroll 32
                for (int n = 0; n < N; ++n) step(n, registers[n]);
            } else {
                for (int64_t n = 0; n < size; ++n) step(n, states[n]);
            }
        }
    }
}

// Adds the lanes of sums (N vectors, zero-padded to a multiple of 16) to row, or sets it.
void write_row(Vec* sums, int64_t size, float* row, bool add) {
    for (int64_t n = 0; n < size; n += LANES) {
        const Vec total = sum_lanes(sums + n);
        const int64_t count = size - n < LANES ? size - n : LANES;
        for (int64_t i = 0; i < count; ++i) row[n + i] = (add ? row[n + i] : 0.0f) + total[i];
    }
}

// Walks a chunk backwards. s.state carries the gradient that later tokens send to h_t; s.y holds
// the gradient of the read-out. Fills s.du and s.ddelta and writes rows of dB and dC.
template <int N>
void adjoint(const Walk& walk, const Window& at, Scratch& s) {
    const Pass& pass = walk.pass;
    const int64_t size = N ? N : walk.job.size;
    const int64_t blocks_before = walk.block * walk.job.batch * walk.job.length * size;
    for (int64_t i = at.tokens - 1; i >= 0; --i) {
        const int64_t t = walk.row(at, i);
        const float* B = walk.token_row(pass.B, at.token + t);
        const float* C = walk.token_row(pass.C, at.token + t);
        Vec dy[VECS], delta[VECS], written[VECS], dwritten[VECS] = {}, dexponent[VECS] = {};
        for (int v = 0; v < VECS; ++v)
            dy[v] = s.y.get(t, v), delta[v] = s.delta.get(t, v), written[v] = s.written.get(t, v);
        const Vec* decay = s.decay + t * size * VECS;
        const Vec* carried = s.carried + t * size * VECS;
#pragma GCC unroll 2
        for (int64_t n = 0; n < size; ++n) {
            Vec sum_B{}, sum_C{};
            for (int v = 0; v < VECS; ++v) {
                const int64_t at_n = n * VECS + v;
                const Vec dstate = s.state[at_n];
                const Vec dcarried = dy[v] * C[n] + dstate;
                const Vec dlog = dcarried * carried[at_n];  // gradient of log a_t
                sum_C += dy[v] * carried[at_n];
                sum_B += written[v] * dstate;
                dwritten[v] += dstate * B[n];
                dexponent[v] += dlog * s.A[at_n];
                s.dA[at_n] += dlog * delta[v];
                s.state[at_n] = decay[at_n] * dcarried;
            }
            s.sum_B[n] = sum_B, s.sum_C[n] = sum_C;
        }
        // What the token's own write contributes to its own read-out, unless masked.
        if (!pass.masked) {
            Vec own{};
            for (int v = 0; v < VECS; ++v) own += dy[v] * written[v];
            float C_dot_B = 0.0f;
            for (int64_t n = 0; n < size; ++n) {
                s.sum_B[n] += own * C[n], s.sum_C[n] += own * B[n];
                C_dot_B += C[n] * B[n];
            }
            for (int v = 0; v < VECS; ++v) dwritten[v] += dy[v] * C_dot_B;
        }
        const int64_t row = blocks_before + (walk.batch * walk.job.length + at.token + t) * size;
        write_row(s.sum_B, size, pass.dB + row, pass.add_dB);
        write_row(s.sum_C, size, pass.dC + row, pass.add_dC);
        for (int v = 0; v < VECS; ++v) {
            s.du.set(t, v, s.du.get(t, v) + delta[v] * dwritten[v]);
            s.ddelta.set(t, v, s.u.get(t, v) * dwritten[v] + LN2 * dexponent[v]);
        }
    }
}

void write_sum(const Tensor3& to, const Window& at, Tile values, Tile spare, bool add) {
    if (add) {
        read_tile(to, at, spare);
        for (int v = 0; v < VECS; ++v)
            for (int64_t t = 0; t < at.tokens; ++t)
                values.set(t, v, values.get(t, v) + spare.get(t, v));
    }
    write_tile(to, at, values);
}

void write_channels(const Walk& walk, float* to, const Vec* sums, bool add) {
    if (!to) return;
    float* row = to + walk.batch * walk.job.channels + walk.channel();
    for (int64_t c = 0; c < walk.channels(); ++c)
        row[c] = (add ? row[c] : 0.0f) + sums[c / LANES][c % LANES];
}

template <int N>
void backward_task(const Job& job, int64_t batch, int64_t block, Scratch& s) {
    for (int64_t index = 0; index < job.num_passes; ++index) {
        const Pass& pass = job.passes[index];
        const Walk walk{job, pass, batch, block};
        Vec dD[VECS] = {}, dbias[VECS] = {};
        load_A(walk, s.A);
        std::memset(s.state, 0, job.size * VECS * sizeof(Vec));
        std::memset(s.dA, 0, job.size * VECS * sizeof(Vec));
        for (int64_t k = walk.chunks() - 1; k >= 0; --k) {
            const Window at = walk.window(k);
            load_inputs<true>(walk, at, s);
            load_dout(walk, at, s, index == 0);
            for (int v = 0; v < VECS; ++v) {
                const Vec D = walk.channel_vector(pass.D, v);
                for (int64_t t = 0; t < at.tokens; ++t) {
                    const Vec dy = s.gated.get(t, v);
                    dD[v] += dy * s.u.get(t, v);
                    s.du.set(t, v, D * dy);
                    s.y.set(t, v, dy);
                }
                if (pass.masked && k == 0) s.y.set(walk.row(at, 0), v, Vec{});
            }
            recompute<N>(walk, at, k, s);
            // recompute may have used this memory; lanes past N must be zero for write_row
            std::memset(s.sum_B + job.size, 0, LANES * sizeof(Vec));
            std::memset(s.sum_C + job.size, 0, LANES * sizeof(Vec));
            adjoint<N>(walk, at, s);
            for (int v = 0; v < VECS; ++v) {
                if (job.softplus)
                    for (int64_t t = 0; t < at.tokens; ++t)
                        s.ddelta.set(t, v, s.ddelta.get(t, v) * s.slope.get(t, v));
                for (int64_t t = 0; t < at.tokens; ++t) dbias[v] += s.ddelta.get(t, v);
                if (job.first_token && k == 0) {
                    const int64_t first = walk.row(at, 0);
                    Vec du = s.du.get(first, v);
                    for (int64_t n = 0; n < job.size; ++n) du += s.state[n * VECS + v];
                    s.du.set(first, v, du);
                }
            }
            write_sum(pass.du, at, s.du, s.gated, pass.add_du);
            write_sum(pass.ddelta, at, s.ddelta, s.gated, pass.add_ddelta);
        }
        for (int64_t c = 0; c < walk.channels(); ++c)
            for (int64_t n = 0; n < job.size; ++n)
                pass.dA[(batch * job.channels + walk.channel() + c) * job.size + n] =
                    s.dA[n * VECS + c / LANES][c % LANES];
        write_channels(walk, pass.dD, dD, pass.add_dD);
        write_channels(walk, pass.dbias, dbias, pass.add_dbias);
    }
}

using Task = void (*)(const Job&, int64_t, int64_t, Scratch&);

void for_each_task(const Job& job, Task task, bool backward) {
    const int64_t blocks = ceil_div(job.channels, WIDTH);
#pragma omp parallel num_threads(static_cast<int>(job.num_threads))
    {
        FlushDenormals flush;
        Scratch scratch(job, backward);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < job.batch * blocks; ++i) task(job, i / blocks, i % blocks, scratch);
    }
}

}  // namespace

extern "C" {

int64_t scan_chunk() { return CHUNK; }
int64_t scan_width() { return WIDTH; }

void scan_forward(const Job* job) {
    const Task task = job->size == 16  ? forward_task<16>
                      : job->size == 8 ? forward_task<8>
                      : job->size == 32 ? forward_task<32>
                                        : forward_task<0>;
    for_each_task(*job, task, false);
}

void scan_backward(const Job* job) {
    const Task task = job->size == 16  ? backward_task<16>
                      : job->size == 8 ? backward_task<8>
                      : job->size == 32 ? backward_task<32>
                                        : backward_task<0>;
    for_each_task(*job, task, true);
}

// The exponentials alone, in cache: the limit that the benchmark compares the scan with.
void exponentials(float* values, int64_t vectors, int64_t repeats, int64_t num_threads) {
#pragma omp parallel num_threads(static_cast<int>(num_threads))
    {
        Vec buffer[64];
        for (int i = 0; i < 64; ++i) buffer[i] = load(values + (i % vectors) * LANES);
        Vec sums[4] = {};
#pragma omp for schedule(static)
        for (int64_t r = 0; r < repeats; ++r) {
            const Vec scale = splat(1.0f + 1e-7f * static_cast<float>(r % 1024));
            for (int i = 0; i < 64; ++i) sums[i % 4] += exp2v(buffer[i] * scale);
        }
#pragma omp critical
        store(values, load(values) + sums[0] + sums[1] + sums[2] + sums[3]);
    }
}
}
