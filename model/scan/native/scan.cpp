// The selective scan, forward and backward, one or two directions: see model/scan/reference.py.
//
// A task owns WIDTH channels of one sample. It walks the tokens of every pass (direction) in chunks:
// the first pass copies a chunk's columns in and computes its steps, the last one writes results,
// all while the chunk is in cache. Lanes are channels, so a read-out needs no horizontal sum.
// States never leave the core: forward keeps the one before every chunk and backward recomputes the
// others. No sum depends on the number of threads.

#include "task.hpp"

namespace {

// Scans the k-th chunk from task.state and sets, or adds to, task.y.
template <bool MASKED, bool TAME, bool CONSTANT_B, bool CONSTANT_C>
__attribute__((noinline)) void read_out(const Task& task, const Pass& pass, int64_t k, bool add) {
    const int64_t begin = k * CHUNK, end = std::min(begin + CHUNK, task.job.length), size = task.size;
    const int64_t ahead = pass.reverse ? -PREFETCH_TOKENS : PREFETCH_TOKENS;
    for (int64_t i = begin; i < end; ++i) {
        const int64_t t = task.token(pass, i);
        task.prefetch_wanted(t + ahead);
        Vec delta[VECS], written[VECS], sums[VECS] = {};
        for (int v = 0; v < VECS; ++v)
            delta[v] = task.delta.get(t, v), written[v] = delta[v] * task.u.get(t, v);
        for (int64_t group = 0; group < size; group += GROUP) {
            const auto* B = task.mixing_at<CONSTANT_B>(pass.B, task.B, t, group);
            const auto* C = task.mixing_at<CONSTANT_C>(pass.C, task.C, t, group);
            const Vec* A = task.A + group * VECS;
            Vec* state = task.state + group * VECS;
            advance<MASKED, TAME>(A, B, C, delta, written, state, sums);
        }
        for (int v = 0; v < VECS; ++v) {
            Vec y = task.D[v] * task.u.get(t, v);
            if (add) y += task.y.get(t, v);
            if (!MASKED || i > 0) y += sums[v];
            task.y.set(t, v, y);
        }
    }
}

// Writes the chunk's results. The gate overwrites u, which is no longer needed.
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
            specialise(
                [&](auto masked, auto tame, auto constant_B, auto constant_C) {
                    read_out<masked, tame, constant_B, constant_C>(task, pass, k, later);
                },
                pass.masked, task.is_tame(tokens), pass.constant_B, pass.constant_C);
            if (last) write_out(job, task, tokens);
        }
        if (pass.last) task.store_states(task.state, pass.last + task.states_of_sample(), false);
    }
}

// Recomputes decay and carried of the k-th chunk and a group of states from the kept ones.
template <bool TAME, bool CONSTANT_B>
__attribute__((noinline)) void recompute(const Task& task, const Pass& pass, int64_t k, int64_t group) {
    const int64_t begin = k * CHUNK, end = std::min(begin + CHUNK, task.job.length);
    const float* kept = task.state_before(pass, k);
    for (int v = 0; v < VECS; ++v) {
        Vec h[GROUP];
        for (int n = 0; n < GROUP; ++n) h[n] = load(kept + (group + n) * WIDTH + v * LANES);
        for (int64_t i = begin; i < end; ++i) {
            const int64_t t = task.token(pass, i), to = (i - begin) * GROUP * VECS + v;
            const auto* B = task.mixing_at<CONSTANT_B>(pass.B, task.B, t, group);
            const Vec delta = task.delta.get(t, v), written = delta * task.u.get(t, v);
#pragma GCC unroll 16
            for (int n = 0; n < GROUP; ++n) {
                const Vec decay = exp2v<TAME>(delta * task.A[(group + n) * VECS + v]);
                const Vec carried = decay * h[n];
                task.decay[to + n * VECS] = decay, task.carried[to + n * VECS] = carried;
                h[n] = written * mixing(B, n, v) + carried;
            }
        }
    }
}

INLINE void add_row(float* row, const float* values, bool add) {
    for (int n = 0; n < GROUP; ++n) row[n] = (add ? row[n] : 0.0f) + values[n];
}

// Walks the k-th chunk backwards; task.state is the gradient that later tokens send to h_t.
template <bool MASKED, bool CONSTANT_B, bool CONSTANT_C>
__attribute__((noinline)) void adjoint(const Task& task, const Pass& pass, int64_t k, int64_t group,
                                       bool add_dB, bool add_dC) {
    const int64_t begin = k * CHUNK, end = std::min(begin + CHUNK, task.job.length);
    const int64_t partial = task.partial() + group;
    const Vec* A = task.A + group * VECS;
    Vec *state = task.state + group * VECS, *dA = task.dA + group * VECS;
    Vec *sum_dB = task.dB + group * VECS, *sum_dC = task.dC + group * VECS;  // of constants
    for (int64_t i = end - 1; i >= begin; --i) {
        const int64_t t = task.token(pass, i);
        const auto* B = task.mixing_at<CONSTANT_B>(pass.B, task.B, t, group);
        const auto* C = task.mixing_at<CONSTANT_C>(pass.C, task.C, t, group);
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
                const auto B_n = mixing(B, n, v);
                const Vec dstate = state[at], dcarried = dy[v] * mixing(C, n, v) + dstate;
                const Vec dlog = dcarried * carried[at];  // the gradient of log a_t
                const Vec dwrite = MASKED ? dstate : dcarried;
                (CONSTANT_C ? sum_dC[at] : dC) += dy[v] * (MASKED ? carried[at] : written[v] * B_n + carried[at]);
                (CONSTANT_B ? sum_dB[at] : dB) += written[v] * dwrite;
                dwritten[v] += dwrite * B_n;
                dexponent[v] += dlog * A[at];
                dA[at] += dlog * delta[v];
                state[at] = decay[at] * dcarried;
            }
            lanes[n] = dB, lanes[GROUP + n] = dC;
        }
        if (!CONSTANT_B || !CONSTANT_C) {
            float sums[2 * GROUP];
            for (int n = 0; n < 2 * GROUP; n += LANES) store(sums + n, sum_lanes(lanes + n));
            if (!CONSTANT_B) add_row(pass.dB + partial + task.row(t), sums, add_dB);
            if (!CONSTANT_C) add_row(pass.dC + partial + task.row(t), sums + GROUP, add_dC);
        }
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

void backward_task(const Job& job, int64_t index) {
    Task task(job, index, true);
    for (int64_t p = 0; p < job.num_passes; ++p) {
        const Pass &pass = job.passes[p], &other = job.passes[1 - p];
        const bool paired = job.num_passes > 1, later = p > 0;
        const bool same_u = paired && pass.du.data == other.du.data;
        const bool same_delta = paired && pass.ddelta.data == other.ddelta.data;
        const bool same_bias = paired && pass.dbias == other.dbias;
        const bool same_step = same_delta && same_bias;
        const bool same_dB = later && pass.dB == other.dB, same_dC = later && pass.dC == other.dC;
        task.load_parameters(pass);
        for (Vec* sums : {task.state, task.dA, task.dB, task.dC})
            std::memset(sums, 0, job.size * VECS * sizeof(Vec));
        if (pass.dlast) task.load_states(pass.dlast + task.states_of_sample(), task.state);
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
            specialise(
                [&](auto tame, auto masked, auto constant_B, auto constant_C) {
                    for (int64_t group = 0; group < job.size; group += GROUP) {
                        recompute<tame, constant_B>(task, pass, k, group);
                        adjoint<masked, constant_B, constant_C>(task, pass, k, group, same_dB, same_dC);
                    }
                },
                task.is_tame(tokens), pass.masked, pass.constant_B, pass.constant_C);
            if (k == 0 && job.first_token) start_state_adjoint(task, pass);
            if (later || !same_u) write_columns(pass.du, task.columns, tokens, task.du);
            if (later || !same_step) write_ddelta(task, pass, tokens, later && same_delta && !same_step);
        }
        const int64_t states = task.states_of_sample();
        task.store_states(task.dA, pass.dA + states, false);
        if (pass.constant_B) task.store_states(task.dB, pass.dB + states, same_dB);
        if (pass.constant_C) task.store_states(task.dC, pass.dC + states, same_dC);
        if (pass.dstart) task.store_states(task.state, pass.dstart + states, false);
        write_channels(task, pass.dD, task.dD, later && pass.dD == other.dD);
        if (later || !same_step)
            write_channels(task, pass.dbias, task.dbias, later && same_bias && !same_step);
    }
}

void for_each_task(const Job& job, void (*run)(const Job&, int64_t)) {
    const int64_t members = job.channels / job.groups;
    const int64_t tasks = job.batch * job.groups * ceil_div(members, WIDTH);
    in_parallel(tasks, job.num_threads, [&](int64_t index) { run(job, index); });
}

}  // namespace

extern "C" {

int64_t scan_chunk() { return CHUNK; }
int64_t scan_width() { return WIDTH; }
int64_t scan_group() { return GROUP; }

void scan_forward(const Job* job) { for_each_task(*job, forward_task); }

void scan_backward(const Job* job) { for_each_task(*job, backward_task); }
}
