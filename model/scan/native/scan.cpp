// The selective scan, forward and backward, one or two directions: see model/scan/reference.py.
//
// A task owns WIDTH channels of one sample: it copies their columns once, walks the tokens of every
// pass (direction) and writes its results once. Lanes are channels, so a read-out needs no
// horizontal sum. States never leave the core: forward keeps the one before every CHUNK tokens and
// backward recomputes the others. No sum depends on the number of threads.

#include "tile.hpp"

constexpr int CHUNK = 16;  // tokens between kept states
constexpr int GROUP = 8;   // states scanned together, in registers; backward's fit the L1 cache

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
    Task(const Job& job, int64_t index, bool backward) : job(job), size(job.size) {
        blocks = ceil_div(job.channels, WIDTH), chunks = ceil_div(job.length, CHUNK);
        sample = index / blocks, block = index % blocks;
        columns = columns_of(index, job.channels, job.length);
        first = columns.first, count = columns.count;

        const int64_t tokens = job.length * VECS, states = size * VECS, chunk = CHUNK * GROUP * VECS;
        workspace.reset(backward ? 6 * tokens + 3 * states + 2 * chunk : 3 * tokens + 2 * states);
        for (Tile* tile : {&u, &delta, &y}) *tile = workspace.tile(job.length);
        A = workspace.take(states), state = workspace.take(states);
        if (!backward) return;
        for (Tile* tile : {&slope, &du, &ddelta}) *tile = workspace.tile(job.length);
        dA = workspace.take(states);
        decay = workspace.take(chunk), carried = workspace.take(chunk);
    }

    const Job& job;
    const int64_t size;  // N
    int64_t blocks, chunks, sample, block, first, count;
    Columns columns;
    Tile u, delta, slope;  // delta after softplus, and the slope of softplus there
    Tile y;                // forward: the sum of read-outs; backward: the gradient of that sum
    Tile du, ddelta;
    Vec *A, *state, *dA;   // A times log2(e); state: h_t, or in backward the gradient of h_t
    Vec *decay, *carried;  // (CHUNK, GROUP, VECS): a_t and a_t h_{t-1}

    // Where a (B, L, N) tensor has the given token.
    int64_t row(int64_t token) const { return (sample * job.length + token) * size; }
    // The token that the pass scans i-th.
    int64_t token(const Pass& pass, int64_t i) const {
        return pass.reverse ? job.length - 1 - i : i;
    }
    // The kept state before the k-th chunk in scan order.
    float* state_before(const Pass& pass, int64_t k) const {
        return pass.states + ((sample * blocks + block) * chunks + k) * size * WIDTH;
    }

    void load_A(const Pass& pass) const {
        float* values = reinterpret_cast<float*>(A);
        std::memset(A, 0, size * VECS * sizeof(Vec));
        for (int64_t c = 0; c < count; ++c)
            for (int64_t n = 0; n < size; ++n)
                values[n * WIDTH + c] = pass.A[(first + c) * size + n] * LOG2E;
    }

    // Fills delta and, for backward, slope.
    void load_delta(const Pass& pass, bool backward) const {
        read_columns(pass.delta, columns, delta);
        if (!pass.bias && !job.softplus) return;
        for (int v = 0; v < VECS; ++v) {
            const Vec bias = channel_values(pass.bias, columns, v);
            for (int64_t t = 0; t < job.length; ++t) {
                const Vec raw = delta.get(t, v) + bias, e = job.softplus ? exp2v(raw * LOG2E) : raw;
                if (backward && job.softplus) slope.set(t, v, raw > 20.0f ? splat(1.0f) : e / (1.0f + e));
                delta.set(t, v, job.softplus ? softplus(raw, e) : raw);
            }
        }
    }

    void start_state(const Pass& pass) const {
        for (int64_t n = 0; n < size; ++n)
            for (int v = 0; v < VECS; ++v)
                state[n * VECS + v] = job.first_token ? u.get(token(pass, 0), v) : Vec{};
    }
};

// Scans tokens [begin, end) in scan order with the states [group, group + GROUP), from task.state,
// and adds the read-outs to task.y.
template <bool MASKED>
void read_out(const Task& task, const Pass& pass, int64_t group, int64_t begin, int64_t end) {
    for (int v = 0; v < VECS; ++v) {
        Vec h[GROUP];
        for (int n = 0; n < GROUP; ++n) h[n] = task.state[(group + n) * VECS + v];
        for (int64_t i = begin; i < end; ++i) {
            const int64_t t = task.token(pass, i);
            const float *B = pass.B + task.row(t) + group, *C = pass.C + task.row(t) + group;
            const Vec delta = task.delta.get(t, v), written = delta * task.u.get(t, v);
            Vec sums[2] = {};
#pragma GCC unroll 16
            for (int n = 0; n < GROUP; ++n) {
                const Vec carried = exp2v(delta * task.A[(group + n) * VECS + v]) * h[n];
                h[n] = written * B[n] + carried;
                sums[n % 2] += (MASKED ? carried : h[n]) * C[n];
            }
            if (!MASKED || i > 0) task.y.set(t, v, task.y.get(t, v) + (sums[0] + sums[1]));
        }
        for (int n = 0; n < GROUP; ++n) task.state[(group + n) * VECS + v] = h[n];
    }
}

void forward_task(const Job& job, int64_t index) {
    const Task task(job, index, false);
    for (int64_t p = 0; p < job.num_passes; ++p) {
        const Pass &pass = job.passes[p], &before = job.passes[0];
        if (p == 0 || pass.u.data != before.u.data) read_columns(pass.u, task.columns, task.u);
        if (p == 0 || pass.delta.data != before.delta.data || pass.bias != before.bias)
            task.load_delta(pass, false);
        for (int v = 0; v < VECS; ++v) {
            const Vec D = channel_values(pass.D, task.columns, v);
            for (int64_t t = 0; t < job.length; ++t)
                task.y.set(t, v, D * task.u.get(t, v) + (p ? task.y.get(t, v) : Vec{}));
        }
        task.load_A(pass);
        task.start_state(pass);
        for (int64_t k = 0; k < task.chunks; ++k) {
            const int64_t begin = k * CHUNK, end = begin + CHUNK;
            if (pass.states)
                std::memcpy(task.state_before(pass, k), task.state, job.size * WIDTH * sizeof(float));
            const auto scan = pass.masked ? read_out<true> : read_out<false>;
            for (int64_t group = 0; group < job.size; group += GROUP)
                scan(task, pass, group, begin, end < job.length ? end : job.length);
        }
    }
    if (job.pre_gate.data) write_columns(job.pre_gate, task.columns, task.y);
    if (job.z.data) {
        read_columns(job.z, task.columns, task.u);
        for (int64_t t = 0; t < job.length; ++t)
            for (int v = 0; v < VECS; ++v) {
                const Vec z = task.u.get(t, v);
                task.y.set(t, v, task.y.get(t, v) * (z * sigmoid(z)));
            }
    }
    write_columns(job.out, task.columns, task.y);
}

// Recomputes decay and carried of tokens [begin, end) and a group of states from the kept ones.
void recompute(const Task& task, const Pass& pass, int64_t group, int64_t begin, int64_t end) {
    const float* kept = task.state_before(pass, begin / CHUNK);
    for (int v = 0; v < VECS; ++v) {
        Vec h[GROUP];
        for (int n = 0; n < GROUP; ++n) h[n] = load(kept + (group + n) * WIDTH + v * LANES);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t t = task.token(pass, i), to = (i - begin) * GROUP * VECS + v;
            const float* B = pass.B + task.row(t) + group;
            const Vec delta = task.delta.get(t, v), written = delta * task.u.get(t, v);
#pragma GCC unroll 16
            for (int n = 0; n < GROUP; ++n) {
                const Vec decay = exp2v(delta * task.A[(group + n) * VECS + v]);
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

// Walks tokens [begin, end) backwards; task.state is the gradient that later tokens send to h_t.
template <bool MASKED>
void adjoint(const Task& task, const Pass& pass, int64_t group, int64_t begin, int64_t end,
             bool add_dB, bool add_dC) {
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
        store(sums, sum_lanes(lanes));
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
void load_dout(const Job& job, const Task& task) {
    read_columns(job.dout, task.columns, task.y);
    if (!job.z.data) return;
    read_columns(job.z, task.columns, task.u);
    read_columns(job.pre_gate, task.columns, task.du);
    for (int64_t t = 0; t < job.length; ++t)
        for (int v = 0; v < VECS; ++v) {
            const Vec z = task.u.get(t, v), dout = task.y.get(t, v), gate = sigmoid(z);
            task.y.set(t, v, dout * z * gate);
            task.du.set(t, v, dout * task.du.get(t, v) * (gate * (1.0f + z * (1.0f - gate))));
        }
    write_columns(job.dz, task.columns, task.du);
}

// Sums over tokens (of a * b, or of a) into a row per sample.
void write_channel_sums(const Task& task, float* to, Tile a, const Tile* b, bool add) {
    if (!to) return;
    for (int v = 0; v < VECS; ++v) {
        Vec sum{};
        for (int64_t t = 0; t < task.job.length; ++t)
            sum += b ? a.get(t, v) * b->get(t, v) : a.get(t, v);
        float* row = to + task.sample * task.job.channels + task.first;
        for (int64_t c = v * LANES; c < task.count && c < (v + 1) * LANES; ++c)
            row[c] = (add ? row[c] : 0.0f) + sum[c - v * LANES];
    }
}

void write_dA(const Task& task, const Pass& pass) {
    const float* values = reinterpret_cast<const float*>(task.dA);
    float* to = pass.dA + (task.sample * task.job.channels + task.first) * task.size;
    for (int64_t c = 0; c < task.count; ++c)
        for (int64_t n = 0; n < task.size; ++n) to[c * task.size + n] = values[n * WIDTH + c];
}

// Takes task.ddelta back through softplus and bias, adding to tensors that an earlier pass wrote.
void write_ddelta(const Task& task, const Pass& pass, bool add_ddelta, bool add_dbias) {
    const int64_t length = task.job.length;
    for (int64_t t = 0; t < length && task.job.softplus; ++t)
        for (int v = 0; v < VECS; ++v)
            task.ddelta.set(t, v, task.ddelta.get(t, v) * task.slope.get(t, v));
    write_channel_sums(task, pass.dbias, task.ddelta, nullptr, add_dbias);
    if (add_ddelta) {
        read_columns(pass.ddelta, task.columns, task.delta);
        for (int64_t t = 0; t < length; ++t)
            for (int v = 0; v < VECS; ++v)
                task.ddelta.set(t, v, task.ddelta.get(t, v) + task.delta.get(t, v));
    }
    write_columns(pass.ddelta, task.columns, task.ddelta);
}

void backward_task(const Job& job, int64_t index) {
    const Task task(job, index, true);
    const size_t tile_bytes = job.length * WIDTH * sizeof(float);
    load_dout(job, task);
    for (int64_t p = 0; p < job.num_passes; ++p) {
        const Pass &pass = job.passes[p], &other = job.passes[1 - p];
        const bool paired = job.num_passes > 1, later = p > 0;
        const bool same_u = paired && pass.du.data == other.du.data;
        const bool same_delta = paired && pass.ddelta.data == other.ddelta.data;
        const bool same_bias = paired && pass.dbias == other.dbias;
        const bool same_step = same_delta && same_bias;
        if (!later || !same_u) {
            read_columns(pass.u, task.columns, task.u);
            std::memset(task.du.rows, 0, tile_bytes);
        }
        if (!later || !same_step) {
            task.load_delta(pass, true);
            std::memset(task.ddelta.rows, 0, tile_bytes);
        }
        for (int v = 0; v < VECS && pass.D; ++v) {
            const Vec D = channel_values(pass.D, task.columns, v);
            for (int64_t t = 0; t < job.length; ++t)
                task.du.set(t, v, task.du.get(t, v) + D * task.y.get(t, v));
        }
        task.load_A(pass);
        std::memset(task.state, 0, job.size * VECS * sizeof(Vec));
        std::memset(task.dA, 0, job.size * VECS * sizeof(Vec));
        for (int64_t k = task.chunks - 1; k >= 0; --k) {
            const int64_t begin = k * CHUNK, end = begin + CHUNK;
            const int64_t stop = end < job.length ? end : job.length;
            const auto walk = pass.masked ? adjoint<true> : adjoint<false>;
            for (int64_t group = 0; group < job.size; group += GROUP) {
                recompute(task, pass, group, begin, stop);
                walk(task, pass, group, begin, stop, later && pass.dB == other.dB,
                     later && pass.dC == other.dC);
            }
        }
        for (int v = 0; v < VECS; ++v) {
            if (job.first_token) {
                const int64_t t = task.token(pass, 0);
                Vec du = task.du.get(t, v);
                for (int64_t n = 0; n < job.size; ++n) du += task.state[n * VECS + v];
                task.du.set(t, v, du);
            }
        }
        write_dA(task, pass);
        write_channel_sums(task, pass.dD, task.y, &task.u, later && pass.dD == other.dD);
        if (later || !same_u) write_columns(pass.du, task.columns, task.du);
        if (later || !same_step)
            write_ddelta(task, pass, later && same_delta && !same_step,
                         later && same_bias && !same_step);
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
