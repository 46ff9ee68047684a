// The selective scan, forward and backward, one or two directions: see model/scan/reference.py.
//
// A task owns WIDTH channels of one sample. It walks the tokens of every pass (direction) in chunks:
// the first pass copies a chunk's columns in and computes its steps, the last one writes results, all
// while the chunk is in the L1 cache. Lanes are channels, so a read-out needs no horizontal sum.
// States never leave the core: forward keeps the one before every chunk and backward recomputes the
// others. No sum depends on the number of threads.

#include "tile.hpp"

constexpr int CHUNK = 16;  // tokens between kept states
constexpr int GROUP = 8;   // states that backward recomputes together; a chunk of them fits L1

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

namespace {

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

// Scans the k-th chunk from task.state and sets, or adds to, task.y.
template <bool MASKED, bool TAME>
void read_out(const Task& task, const Pass& pass, int64_t k, bool add) {
    const int64_t begin = k * CHUNK, end = std::min(begin + CHUNK, task.job.length), size = task.size;
    const int64_t ahead = pass.reverse ? -PREFETCH_TOKENS : PREFETCH_TOKENS;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t t = task.token(pass, i);
        task.prefetch_wanted(t + ahead);
        Vec delta[VECS], written[VECS], sums[VECS] = {};
        for (int v = 0; v < VECS; ++v)
            delta[v] = task.delta.get(t, v), written[v] = delta[v] * task.u.get(t, v);
        for (int64_t group = 0; group < size; group += GROUP) {
            const float *B = pass.B + task.row(t) + group, *C = pass.C + task.row(t) + group;
            const Vec* A = task.A + group * VECS;
            Vec* state = task.state + group * VECS;
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
        for (int v = 0; v < VECS; ++v) {
            Vec y = task.D[v] * task.u.get(t, v);
            if (add) y += task.y.get(t, v);
            if (!MASKED || i > 0) y += sums[v];
            task.y.set(t, v, y);
        }
    }
}

// Writes the chunk's results; the gate takes the place of u, which nobody needs any more.
void write_out(const Job& job, const Task& task, const Span& tokens) {
    if (job.pre_gate.data) write_columns(job.pre_gate, task.columns, tokens, task.y);
    if (job.z.data) {
        read_columns(job.z, task.columns, tokens, task.u);
        for (int64_t t = tokens.begin; t < tokens.end; ++t)
            for (int v = 0; v < VECS; ++v) {
                const Vec z = task.u.get(t, v);
                task.y.set(t, v, task.y.get(t, v) * (z * sigmoid(z)));
            }
    }
    write_columns(job.out, task.columns, tokens, task.y);
}

void forward_task(const Job& job, int64_t index) {
    Task task(job, index, false);
    for (int64_t p = 0; p < job.num_passes; ++p) {
        const Pass &pass = job.passes[p], &before = job.passes[0];
        const bool later = p > 0, last = p + 1 == job.num_passes;
        const bool same_u = later && same(pass.u, before.u);
        const bool same_delta = later && same(pass.delta, before.delta) && pass.bias == before.bias;
        task.load_parameters(pass);
        task.num_wanted = 0;
        if (!same_u) task.want(pass.u);
        if (!same_delta) task.want(pass.delta);
        if (last)
            for (const Tensor3& tensor : {job.z, job.pre_gate, job.out}) task.want(tensor);
        for (int64_t k = 0; k < task.chunks; ++k) {
            const Span tokens = task.chunk(pass, k);
            if (!same_u) read_columns(pass.u, task.columns, tokens, task.u);
            if (!same_delta) task.load_delta(pass, tokens);
            if (k == 0) task.start_state(pass);
            if (pass.states)
                std::memcpy(task.state_before(pass, k), task.state, job.size * WIDTH * sizeof(float));
            const bool tame = task.is_tame(tokens);
            const auto scan = pass.masked ? (tame ? read_out<true, true> : read_out<true, false>)
                                          : (tame ? read_out<false, true> : read_out<false, false>);
            scan(task, pass, k, later);
            if (last) write_out(job, task, tokens);
        }
    }
}

// Recomputes decay and carried of the k-th chunk and a group of states from the kept ones.
template <bool TAME>
void recompute(const Task& task, const Pass& pass, int64_t k, int64_t group) {
    const int64_t begin = k * CHUNK, end = std::min(begin + CHUNK, task.job.length);
    const float* kept = task.state_before(pass, k);
    for (int v = 0; v < VECS; ++v) {
        Vec h[GROUP];
        for (int n = 0; n < GROUP; ++n) h[n] = load(kept + (group + n) * WIDTH + v * LANES);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t t = task.token(pass, i), to = (i - begin) * GROUP * VECS + v;
            const float* B = pass.B + task.row(t) + group;
            const Vec delta = task.delta.get(t, v), written = delta * task.u.get(t, v);
#pragma GCC unroll 16
            for (int n = 0; n < GROUP; ++n) {
                const Vec decay = exp2v<TAME>(delta * task.A[(group + n) * VECS + v]);
                const Vec carried = decay * h[n];
                task.decay[to + n * VECS] = decay, task.carried[to + n * VECS] = carried;
                h[n] = written * B[n] + carried;
            }
        }
    }
}

INLINE void add_row(float* row, const float* values, bool add) {
    for (int n = 0; n < GROUP; ++n) row[n] = (add ? row[n] : 0.0f) + values[n];
}

// Walks the k-th chunk backwards; task.state is the gradient that later tokens send to h_t.
template <bool MASKED>
void adjoint(const Task& task, const Pass& pass, int64_t k, int64_t group, bool add_dB, bool add_dC) {
    const int64_t begin = k * CHUNK, end = std::min(begin + CHUNK, task.job.length);
    const int64_t partial = task.block * task.job.batch * task.job.length * task.size + group;
    const Vec* A = task.A + group * VECS;
    Vec *state = task.state + group * VECS, *dA = task.dA + group * VECS;
    for (int64_t i = end - 1; i >= begin; --i) {
        const int64_t t = task.token(pass, i);
        const float *B = pass.B + task.row(t) + group, *C = pass.C + task.row(t) + group;
        const Vec* decay = task.decay + (i - begin) * GROUP * VECS;
        const Vec* carried = task.carried + (i - begin) * GROUP * VECS;
        Vec dy[VECS], delta[VECS], written[VECS], dwritten[VECS] = {}, dexponent[VECS] = {};
        for (int v = 0; v < VECS; ++v) {
            dy[v] = MASKED && i == 0 ? Vec{} : task.y.get(t, v);
            delta[v] = task.delta.get(t, v), written[v] = delta[v] * task.u.get(t, v);
        }
        Vec lanes[2 * GROUP];  // of the gradients of B_t and C_t
#pragma GCC unroll 2
        for (int n = 0; n < GROUP; ++n) {
            Vec dB{}, dC{};
            for (int v = 0; v < VECS; ++v) {
                const int at = n * VECS + v;
                const Vec dstate = state[at], dcarried = dy[v] * C[n] + dstate;
                const Vec dlog = dcarried * carried[at];  // the gradient of log a_t
                const Vec dwrite = MASKED ? dstate : dcarried;
                dC += dy[v] * (MASKED ? carried[at] : written[v] * B[n] + carried[at]);
                dB += written[v] * dwrite;
                dwritten[v] += dwrite * B[n];
                dexponent[v] += dlog * A[at];
                dA[at] += dlog * delta[v];
                state[at] = decay[at] * dcarried;
            }
            lanes[n] = dB, lanes[GROUP + n] = dC;
        }
        float sums[2 * GROUP];
        for (int n = 0; n < 2 * GROUP; n += LANES) store(sums + n, sum_lanes(lanes + n));
        add_row(pass.dB + partial + task.row(t), sums, add_dB);
        add_row(pass.dC + partial + task.row(t), sums + GROUP, add_dC);
        for (int v = 0; v < VECS; ++v) {
            task.du.set(t, v, task.du.get(t, v) + delta[v] * dwritten[v]);
            const Vec ddelta = task.u.get(t, v) * dwritten[v] + LN2 * dexponent[v];
            task.ddelta.set(t, v, task.ddelta.get(t, v) + ddelta);
        }
    }
}

// Leaves the gradient of the pre-gate sum in task.y and writes that of z.
void load_dout(const Job& job, const Task& task, const Span& tokens) {
    read_columns(job.dout, task.columns, tokens, task.y);
    if (!job.z.data) return;
    read_columns(job.z, task.columns, tokens, task.u);
    read_columns(job.pre_gate, task.columns, tokens, task.du);
    for (int64_t t = tokens.begin; t < tokens.end; ++t)
        for (int v = 0; v < VECS; ++v) {
            const Vec z = task.u.get(t, v), dout = task.y.get(t, v), gate = sigmoid(z);
            task.y.set(t, v, dout * z * gate);
            task.du.set(t, v, dout * task.du.get(t, v) * (gate * (1.0f + z * (1.0f - gate))));
        }
    write_columns(job.dz, task.columns, tokens, task.du);
}

// Starts, or adds to, the gradient of u with the skip connection, and adds to that of D.
void skip_adjoint(Task& task, const Span& tokens, bool add) {
    for (int64_t t = tokens.begin; t < tokens.end; ++t)
        for (int v = 0; v < VECS; ++v) {
            const Vec dy = task.y.get(t, v);
            task.dD[v] += dy * task.u.get(t, v);
            task.du.set(t, v, task.D[v] * dy + (add ? task.du.get(t, v) : Vec{}));
        }
}

void start_state_adjoint(const Task& task, const Pass& pass) {
    const int64_t t = task.token(pass, 0);
    for (int v = 0; v < VECS; ++v) {
        Vec du = task.du.get(t, v);
        for (int64_t n = 0; n < task.size; ++n) du += task.state[n * VECS + v];
        task.du.set(t, v, du);
    }
}

// Takes task.ddelta back through softplus and bias, adding to what an earlier pass wrote.
void write_ddelta(Task& task, const Pass& pass, const Span& tokens, bool add) {
    if (add) read_columns(pass.ddelta, task.columns, tokens, task.delta);
    for (int64_t t = tokens.begin; t < tokens.end; ++t)
        for (int v = 0; v < VECS; ++v) {
            Vec ddelta = task.ddelta.get(t, v);
            if (task.job.softplus) ddelta *= task.slope.get(t, v);
            task.dbias[v] += ddelta;
            task.ddelta.set(t, v, add ? ddelta + task.delta.get(t, v) : ddelta);
        }
    write_columns(pass.ddelta, task.columns, tokens, task.ddelta);
}

void write_channels(const Task& task, float* to, const Vec* sums, bool add) {
    if (!to) return;
    const float* values = reinterpret_cast<const float*>(sums);
    float* row = to + task.sample * task.job.channels + task.columns.first;
    for (int64_t c = 0; c < task.columns.count; ++c) row[c] = (add ? row[c] : 0.0f) + values[c];
}

void write_dA(const Task& task, const Pass& pass) {
    const float* values = reinterpret_cast<const float*>(task.dA);
    float* to = pass.dA + (task.sample * task.job.channels + task.columns.first) * task.size;
    for (int64_t c = 0; c < task.columns.count; ++c)
        for (int64_t n = 0; n < task.size; ++n) to[c * task.size + n] = values[n * WIDTH + c];
}

void backward_task(const Job& job, int64_t index) {
    Task task(job, index, true);
    for (int64_t p = 0; p < job.num_passes; ++p) {
        const Pass &pass = job.passes[p], &other = job.passes[1 - p];
        const bool paired = job.num_passes > 1, later = p > 0;
        const bool same_u = paired && pass.du.data == other.du.data;
        const bool same_delta = paired && pass.ddelta.data == other.ddelta.data;
        const bool same_bias = paired && pass.dbias == other.dbias;
        const bool same_step = same_delta && same_bias;
        task.load_parameters(pass);
        std::memset(task.state, 0, job.size * VECS * sizeof(Vec));
        std::memset(task.dA, 0, job.size * VECS * sizeof(Vec));
        std::memset(task.dD, 0, sizeof task.dD);
        if (!later || !same_step) std::memset(task.dbias, 0, sizeof task.dbias);
        for (int64_t k = task.chunks - 1; k >= 0; --k) {
            const Span tokens = task.chunk(pass, k);
            if (!later) load_dout(job, task, tokens);
            if (!later || !same_u) read_columns(pass.u, task.columns, tokens, task.u);
            skip_adjoint(task, tokens, later && same_u);
            if (!later || !same_step) {
                task.load_delta(pass, tokens);
                task.ddelta.clear(tokens);
            }
            const auto again = task.is_tame(tokens) ? recompute<true> : recompute<false>;
            const auto walk = pass.masked ? adjoint<true> : adjoint<false>;
            for (int64_t group = 0; group < job.size; group += GROUP) {
                again(task, pass, k, group);
                walk(task, pass, k, group, later && pass.dB == other.dB, later && pass.dC == other.dC);
            }
            if (k == 0 && job.first_token) start_state_adjoint(task, pass);
            if (later || !same_u) write_columns(pass.du, task.columns, tokens, task.du);
            if (later || !same_step) write_ddelta(task, pass, tokens, later && same_delta && !same_step);
        }
        write_dA(task, pass);
        write_channels(task, pass.dD, task.dD, later && pass.dD == other.dD);
        if (later || !same_step)
            write_channels(task, pass.dbias, task.dbias, later && same_bias && !same_step);
    }
}

void for_each_task(const Job& job, void (*run)(const Job&, int64_t)) {
    const int64_t tasks = job.batch * ceil_div(job.channels, WIDTH);
    in_parallel(tasks, job.num_threads, [&](int64_t index) { run(job, index); });
}

}  // namespace

extern "C" {

int64_t scan_chunk() { return CHUNK; }
int64_t scan_width() { return WIDTH; }
int64_t scan_group() { return GROUP; }

void scan_forward(const Job* job) { for_each_task(*job, forward_task); }

void scan_backward(const Job* job) { for_each_task(*job, backward_task); }

// As many exponentials alone, in cache: the limit that the benchmark compares the scan with.
void exponentials(int64_t count, int64_t num_threads) {
    constexpr int BUFFER = 64;
    Vec total{};
#pragma omp parallel num_threads(static_cast<int>(num_threads))
    {
        Vec buffer[BUFFER], sums[4] = {};
        for (int i = 0; i < BUFFER; ++i) buffer[i] = splat(-0.1f * i);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < count / (BUFFER * LANES); ++r) {
            const Vec scale = splat(1.0f + 1e-7f * static_cast<float>(r % 1024));
            for (int i = 0; i < BUFFER; i += 8)
#pragma GCC unroll 8
                for (int j = 0; j < 8; ++j) sums[j % 4] += exp2v<true>(buffer[i + j] * scale);
        }
#pragma omp critical
        total += sums[0] + sums[1] + sums[2] + sums[3];
    }
    volatile float used = total[0];  // or the compiler would leave them out
    (void)used;
}
}
