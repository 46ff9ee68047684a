// Columns of a (B, D, L) tensor: every token x WIDTH channels in contiguous scratch memory.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <initializer_list>

#include "simd.hpp"

constexpr int WIDTH = 32;            // channels per tile
constexpr int VECS = WIDTH / LANES;  // vectors per row of a tile

// A (B, D, L) float tensor; strides in elements. data is null when the tensor is absent.
struct Tensor3 {
    float* data;
    int64_t batch, channel, token;
};

static inline bool same(const Tensor3& a, const Tensor3& b) {
    return a.data == b.data && a.batch == b.batch && a.channel == b.channel && a.token == b.token;
}

// The tokens [begin, end).
struct Span {
    int64_t begin, end;
};

// A row per token, WIDTH channels wide.
struct Tile {
    float* rows;
    Vec get(int64_t token, int v) const { return load(rows + token * WIDTH + v * LANES); }
    void set(int64_t token, int v, Vec value) const {
        store(rows + token * WIDTH + v * LANES, value);
    }
    void clear(const Span& tokens) const {
        std::memset(rows + tokens.begin * WIDTH, 0, (tokens.end - tokens.begin) * WIDTH * sizeof(float));
    }
};

// The channels [first, first + count) of one sample; the tile's other lanes are padding.
struct Columns {
    int64_t sample, first, count;
};

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Task number ``index`` when every task owns WIDTH channels of one group of one sample, or the fewer
// that the last task of a group has left.
static inline Columns columns_of(int64_t index, int64_t channels, int64_t groups = 1) {
    const int64_t members = channels / groups, blocks = ceil_div(members, WIDTH);
    const int64_t group = index / blocks % groups, first = index % blocks * WIDTH;
    const int64_t left = members - first;
    return {index / blocks / groups, group * members + first, left < WIDTH ? left : WIDTH};
}

// Tokens are far apart in memory and hardware prefetchers stop at page borders.
constexpr int64_t PREFETCH_TOKENS = 24;

static inline void prefetch(const float* row) {
    constexpr int LINE = 16;  // floats per cache line
    for (int c = 0; c < WIDTH; c += LINE) __builtin_prefetch(row + c);
}

static void read_columns(const Tensor3& from, const Columns& at, const Span& span, Tile to) {
    const float* base = from.data + at.sample * from.batch + at.first * from.channel;
    if (from.channel == 1 && at.count == WIDTH) {
        for (int64_t t = span.begin; t < span.end; ++t) {
            const float* row = base + t * from.token;
            if (t + PREFETCH_TOKENS < span.end) prefetch(row + PREFETCH_TOKENS * from.token);
            for (int v = 0; v < VECS; ++v) to.set(t, v, load(row + v * LANES));
        }
        return;
    }
    constexpr int64_t STRIPE = 64;  // tokens per stripe, so that the rows written stay in cache
    for (int64_t begin = span.begin; begin < span.end; begin += STRIPE) {
        const int64_t end = begin + STRIPE < span.end ? begin + STRIPE : span.end;
        // Padding reads as zero, so it contributes nothing.
        if (at.count < WIDTH) to.clear({begin, end});
        for (int64_t c = 0; c < at.count; ++c)
            for (int64_t t = begin; t < end; ++t)
                to.rows[t * WIDTH + c] = base[c * from.channel + t * from.token];
    }
}

// to.channel must be 1.
static void write_columns(const Tensor3& to, const Columns& at, const Span& span, Tile from) {
    float* base = to.data + at.sample * to.batch + at.first;
    for (int64_t t = span.begin; t < span.end; ++t) {
        float* row = base + t * to.token;
        if (at.count == WIDTH)
            for (int v = 0; v < VECS; ++v) store(row + v * LANES, from.get(t, v));
        else
            std::memcpy(row, from.rows + t * WIDTH, at.count * sizeof(float));
    }
}

// Values of a (D,) tensor for one vector of channels; zero where it is absent or padding.
static inline Vec channel_values(const float* values, const Columns& at, int v) {
    Vec result{};
    const int64_t left = at.count - v * LANES;
    if (values && left > 0)
        std::memcpy(&result, values + at.first + v * LANES,
                    (left < LANES ? left : LANES) * sizeof(float));
    return result;
}

// A thread's memory. It is kept between calls, as fresh pages cost more than the arithmetic on them.
class Workspace {
  public:
    ~Workspace() { std::free(memory_); }
    Vec* take(int64_t vectors) { return (next_ += vectors) - vectors; }
    Tile tile(int64_t tokens) { return {reinterpret_cast<float*>(take(tokens * VECS))}; }
    void reset(int64_t vectors) {
        if (vectors > capacity_) {
            std::free(memory_);
            memory_ = static_cast<Vec*>(std::aligned_alloc(sizeof(Vec), vectors * sizeof(Vec)));
            capacity_ = vectors;
        }
        next_ = memory_;
    }

  private:
    Vec *memory_ = nullptr, *next_ = nullptr;
    int64_t capacity_ = 0;
};

inline thread_local Workspace workspace;

template <typename Run>
void in_parallel(int64_t tasks, int64_t num_threads, const Run& run) {
    const int64_t threads = num_threads < tasks ? num_threads : tasks;
#pragma omp parallel num_threads(static_cast<int>(threads))
    {
        FlushDenormals flush;
#pragma omp for schedule(dynamic)
        for (int64_t index = 0; index < tasks; ++index) run(index);
    }
}
