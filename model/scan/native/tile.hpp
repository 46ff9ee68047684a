// Tiles of a (B, D, L) tensor: some tokens x WIDTH channels in contiguous scratch memory.
#pragma once
#include "simd.hpp"

constexpr int VECS = 2;               // vectors per row of a tile
constexpr int WIDTH = VECS * LANES;   // channels per tile

// A (B, D, L) float tensor; strides in elements. data is null when the tensor is absent.
struct Tensor3 {
    float* data;
    int64_t batch, channel, token;
};

struct Tile {
    float* rows;  // (tokens, WIDTH)
    Vec get(int64_t row, int v) const { return load(rows + row * WIDTH + v * LANES); }
    void set(int64_t row, int v, Vec value) const { store(rows + row * WIDTH + v * LANES, value); }
};

// Where a tile lies: channels [channel, channel + channels), tokens [token, token + tokens).
struct Window {
    int64_t batch, channel, channels, token, tokens;
};

static void read_tile(const Tensor3& from, const Window& at, Tile to) {
    const float* base =
        from.data + at.batch * from.batch + at.channel * from.channel + at.token * from.token;
    if (from.channel == 1 && at.channels == WIDTH) {
        for (int64_t t = 0; t < at.tokens; ++t)
            std::memcpy(to.rows + t * WIDTH, base + t * from.token, WIDTH * sizeof(float));
        return;
    }
    // Channels beyond the last read as zero and contribute nothing anywhere.
    if (at.channels < WIDTH) std::memset(to.rows, 0, at.tokens * WIDTH * sizeof(float));
    for (int64_t c = 0; c < at.channels; ++c)
        for (int64_t t = 0; t < at.tokens; ++t)
            to.rows[t * WIDTH + c] = base[c * from.channel + t * from.token];
}

static void write_tile(const Tensor3& to, const Window& at, Tile from) {
    float* base = to.data + at.batch * to.batch + at.channel * to.channel + at.token * to.token;
    for (int64_t t = 0; t < at.tokens; ++t) {
        if (at.channels == WIDTH)
            std::memcpy(base + t * to.token, from.rows + t * WIDTH, WIDTH * sizeof(float));
        else
            std::memcpy(base + t * to.token, from.rows + t * WIDTH, at.channels * sizeof(float));
    }
}
