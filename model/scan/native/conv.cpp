// Depthwise causal convolution + bias + SiLU: see model/scan/conv.py. A task owns WIDTH channels of
// one sample; backward recomputes the convolution, so only the input is kept.
#include "tile.hpp"

extern "C" {

// weight: (taps, D), the last tap being the token itself; bias: (D,) or null.
// Gradients: dweight (B, taps, D) and dbias (B, D), to be summed over B.
struct ConvJob {
    int64_t batch, channels, length, taps, reverse, num_threads;
    Tensor3 x, out, dout, dx;
    const float *weight, *bias;
    float *dweight, *dbias;
};
}

namespace {

class ConvTask {
  public:
    ConvTask(const ConvJob& job, int64_t index)
        : job(job), columns(columns_of(index, job.channels)), tokens{0, job.length} {
        // Tiles have margins of zeros, so that no tap has to ask whether its token exists.
        const int64_t margin = job.taps - 1, rows = job.length + 2 * margin;
        workspace.reset(3 * rows * VECS);
        for (Tile* tile : {&x, &y, &dx}) {
            *tile = workspace.tile(rows);
            std::memset(tile->rows, 0, margin * WIDTH * sizeof(float));
            tile->rows += margin * WIDTH;
            std::memset(tile->rows + job.length * WIDTH, 0, margin * WIDTH * sizeof(float));
        }
        read_columns(job.x, columns, tokens, x);
    }

    const ConvJob& job;
    const Columns columns;
    const Span tokens;
    Tile x, y, dx;

    Vec weight(int64_t tap, int v) const {
        return channel_values(job.weight + tap * job.channels, columns, v);
    }
    // How far from its own token the tap looks.
    int64_t offset(int64_t tap) const {
        const int64_t back = tap - (job.taps - 1);
        return job.reverse ? -back : back;
    }
    // y = convolution + bias
    void convolve() const {
        for (int v = 0; v < VECS; ++v) {
            const Vec bias = channel_values(job.bias, columns, v);
            for (int64_t t = 0; t < job.length; ++t) y.set(t, v, bias);
            for (int64_t tap = 0; tap < job.taps; ++tap) add(y, x, offset(tap), weight(tap, v), v);
        }
    }
    // to[t] += from[t + shift] * factor
    void add(Tile to, Tile from, int64_t shift, Vec factor, int v) const {
        for (int64_t t = 0; t < job.length; ++t)
            to.set(t, v, to.get(t, v) + from.get(t + shift, v) * factor);
    }
    void write_channels(float* to, Vec values, int v) const {
        for (int64_t c = v * LANES; c < columns.count && c < (v + 1) * LANES; ++c)
            to[columns.first + c] = values[c - v * LANES];
    }
};

void forward_task(const ConvJob& job, int64_t index) {
    const ConvTask task(job, index);
    task.convolve();
    for (int64_t t = 0; t < job.length; ++t)
        for (int v = 0; v < VECS; ++v) {
            const Vec y = task.y.get(t, v);
            task.y.set(t, v, y * sigmoid(y));
        }
    write_columns(job.out, task.columns, task.tokens, task.y);
}

void backward_task(const ConvJob& job, int64_t index) {
    const ConvTask task(job, index);
    const Columns& at = task.columns;
    task.convolve();
    read_columns(job.dout, at, task.tokens, task.dx);
    for (int v = 0; v < VECS; ++v) {
        Vec dbias{};
        for (int64_t t = 0; t < job.length; ++t) {
            const Vec y = task.y.get(t, v), gate = sigmoid(y);
            const Vec dy = task.dx.get(t, v) * (gate * (1.0f + y * (1.0f - gate)));
            task.y.set(t, v, dy);
            task.dx.set(t, v, Vec{});
            dbias += dy;
        }
        task.write_channels(job.dbias + at.sample * job.channels, dbias, v);
        for (int64_t tap = 0; tap < job.taps; ++tap) {
            const int64_t shift = task.offset(tap);
            Vec dweight{};
            for (int64_t t = 0; t < job.length; ++t)
                dweight += task.y.get(t, v) * task.x.get(t + shift, v);
            float* row = job.dweight + (at.sample * job.taps + tap) * job.channels;
            task.write_channels(row, dweight, v);
            task.add(task.dx, task.y, -shift, task.weight(tap, v), v);
        }
    }
    write_columns(job.dx, at, task.tokens, task.dx);
}

}  // namespace

extern "C" {

void conv_forward(const ConvJob* job) {
    in_parallel(job->batch * ceil_div(job->channels, WIDTH), job->num_threads,
                [&](int64_t index) { forward_task(*job, index); });
}

void conv_backward(const ConvJob* job) {
    in_parallel(job->batch * ceil_div(job->channels, WIDTH), job->num_threads,
                [&](int64_t index) { backward_task(*job, index); });
}
}
