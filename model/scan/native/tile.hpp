// Columns of a (B, D, L) tensor: every token x WIDTH channels in contiguous scratch memory.
#pragma once
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

// Tokens are far apart in memory and hardware prefetchers stop at page borders.
constexpr int64_t PREFETCH_TOKENS = 12;

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
