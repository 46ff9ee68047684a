// Residual add + RMSNorm over contiguous rows: see model/scan/norm.py.
#include "tile.hpp"

constexpr int64_t ROWS = 32;  // rows per task, whatever the threads: sums keep their order

extern "C" {

// x, residual (or null), total, normed, gradients: (rows, width). dweight: (tasks, width) partials.
struct NormJob {
    int64_t rows, width, num_threads;
    float eps;
    const float *x, *residual, *weight;
    float *total, *normed;
    const float *dnormed, *dtotal;  // dtotal: the gradient of the residual stream, or null
    float *dx, *dweight;
};

int64_t norm_rows() { return ROWS; }
}

namespace {

float mean(const float* a, const float* b, int64_t width) {
    Vec sum{};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) sum += load(a + i) * load(b + i);
    float total = 0.0f;
    for (int lane = 0; lane < LANES; ++lane) total += sum[lane];
    for (; i < width; ++i) total += a[i] * b[i];
    return total / static_cast<float>(width);
}

template <typename Row>
void for_each_row(const NormJob& job, const Row& row) {
    in_parallel(ceil_div(job.rows, ROWS), job.num_threads, [&](int64_t task) {
        const int64_t end = (task + 1) * ROWS;
        for (int64_t r = task * ROWS; r < end && r < job.rows; ++r) row(r * job.width, task);
    });
}

}  // namespace

extern "C" {

void norm_forward(const NormJob* job) {
    const NormJob& j = *job;
    for_each_row(j, [&](int64_t at, int64_t) {
        float* total = j.total + at;
        for (int64_t i = 0; i < j.width; ++i)
            total[i] = j.x[at + i] + (j.residual ? j.residual[at + i] : 0.0f);
        const float scale = 1.0f / __builtin_sqrtf(mean(total, total, j.width) + j.eps);
        for (int64_t i = 0; i < j.width; ++i) j.normed[at + i] = total[i] * scale * j.weight[i];
    });
}

void norm_backward(const NormJob* job) {
    const NormJob& j = *job;
    std::memset(j.dweight, 0, ceil_div(j.rows, ROWS) * j.width * sizeof(float));
    for_each_row(j, [&](int64_t at, int64_t task) {
        const float *total = j.total + at, *dnormed = j.dnormed + at;
        float *dx = j.dx + at, *dweight = j.dweight + task * j.width;
        const float scale = 1.0f / __builtin_sqrtf(mean(total, total, j.width) + j.eps);
        for (int64_t i = 0; i < j.width; ++i) dx[i] = dnormed[i] * j.weight[i];
        const float shrink = mean(dx, total, j.width) * scale * scale * scale;
        for (int64_t i = 0; i < j.width; ++i) {
            dweight[i] += dnormed[i] * total[i] * scale;
            dx[i] = dx[i] * scale - total[i] * shrink + (j.dtotal ? j.dtotal[at + i] : 0.0f);
        }
    });
}
}
