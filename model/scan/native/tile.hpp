// Columns of a (B, D, L) tensor: every token x WIDTH channels in contiguous scratch memory.
#pragma once
#include <cstdlib>
#include <initializer_list>

#include "simd.hpp"

constexpr int VECS = 2;  // vectors per row of a tile
constexpr int WIDTH = VECS * LANES;  // channels per tile

// A (B, D, L) float tensor; strides in elements. data is null when the tensor is absent.
struct Tensor3 {
    float* data;
    int64_t batch, channel, token;
};

// A row per token, WIDTH channels wide.
struct Tile {
    float* rows;
    Vec get(int64_t token, int v) const { return load(rows + token * WIDTH + v * LANES); }
    void set(int64_t token, int v, Vec value) const {
        store(rows + token * WIDTH + v * LANES, value);
    }
};

// The channels [first, first + count) of one sample; the tile's other lanes are padding.
struct Columns {
    int64_t sample, first, count, tokens;
};

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Task number ``index`` when every task owns WIDTH channels of one sample.
static inline Columns columns_of(int64_t index, int64_t channels, int64_t tokens) {
    const int64_t blocks = ceil_div(channels, WIDTH), first = index % blocks * WIDTH;
    const int64_t left = channels - first;
    return {index / blocks, first, left < WIDTH ? left : WIDTH, tokens};
}

// Tokens are far apart in memory and hardware prefetchers stop at page borders.
constexpr int64_t PREFETCH_TOKENS = 32;

static void read_columns(const Tensor3& from, const Columns& at, Tile to) {
    const float* base = from.data + at.sample * from.batch + at.first * from.channel;
    if (from.channel == 1 && at.count == WIDTH) {
        for (int64_t t = 0; t < at.tokens; ++t) {
            const float* row = base + t * from.token;
            for (int v = 0; v < VECS; ++v) {
                __builtin_prefetch(row + PREFETCH_TOKENS * from.token + v * LANES);
                to.set(t, v, load(row + v * LANES));
            }
        }
        return;
    }
    // Padding reads as zero and then contributes nothing anywhere.
    if (at.count < WIDTH) std::memset(to.rows, 0, at.tokens * WIDTH * sizeof(float));
    constexpr int64_t STRIPE = 64;  // tokens per stripe, so that the rows written stay in cache
    for (int64_t begin = 0; begin < at.tokens; begin += STRIPE) {
        const int64_t end = begin + STRIPE < at.tokens ? begin + STRIPE : at.tokens;
        for (int64_t c = 0; c < at.count; ++c)
            for (int64_t t = begin; t < end; ++t)
                to.rows[t * WIDTH + c] = base[c * from.channel + t * from.token];
    }
}

// to.channel must be 1.
static void write_columns(const Tensor3& to, const Columns& at, Tile from) {
    float* base = to.data + at.sample * to.batch + at.first;
    for (int64_t t = 0; t < at.tokens; ++t) {
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

// A thread's memory; kept between calls, for fresh pages cost more than the arithmetic on them.
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
