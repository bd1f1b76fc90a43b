// What a task of attention works on: its memory, which keys its rows see, and what happens to scores before they become
// weights. Both ways to attend to a block are written in it: vector_attention.h and tile_attention.h.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common.h"

namespace attention {
namespace {

constexpr int ROWS = 64;   // maximum number of packed rows of a task
constexpr int KEYS = KEY_BLOCK; // packed keys and values of a block fit into L2 beside the rows
constexpr int UNIT = 32; // keys: multiples of it may be left out at the start of a block
constexpr int GROUP = 16 * ATTENTION_VECTORS; // keys of a register tile
constexpr int TOGETHER = 48; // queries that are attended to a block in codes together: a multiple of all levels' tiles
#ifdef HAS_TILES
constexpr int QUERIES = tiles::SIDE;  // query rows of a register tile
constexpr int64_t PAD = tiles::DEPTH; // a query is filled up with zeros to a multiple of it
#else
constexpr int QUERIES = 6;
constexpr int64_t PAD = 1;
#endif

// Numbers from one query to the next.
constexpr int64_t query_stride(int64_t key_width) { return (key_width + PAD - 1) / PAD * PAD; }

constexpr float LOG2E = 1.44269504f;

// One task's working set. W is V up to a multiple of 16: what a stored value has behind its numbers is computed with them,
// and not written out.
struct Work {
    Operand *query;     // [ROWS * G][query_stride(D)], and as much as a register tile reads behind the last
    Packed *keys;       // [KEYS / GROUP][D / STEP][GROUP][STEP]
    Packed *values;     // [KEYS / STEP][W][STEP]
    Element *gathered_keys;    // [D][KEYS]: of a block that lies in several pieces
    Element *gathered_values;  // [KEYS][W]
    float *scores;      // [QUERIES][KEYS], where blocks are in codes [TOGETHER][KEYS]
    Operand *weights;   // [QUERIES][KEYS]
    float *numerator;   // [ROWS * G][W]
    float *maximum;     // [ROWS * G], and so on: of the scaled scores so far, as powers of 2
    float *denominator; // [ROWS * G], and so on
    int key_width, value_width; // D, W
    float bend;         // where scores are capped, what they are multiplied by before they are bent; else 0
    float scale;        // of scores, bent or not, times log2(e)

    Work(Scratch &scratch, int num_queries, const TreeStep &step, float score_scale)
        : key_width(step.key_width), value_width((step.value_width + 15) / 16 * 16), bend(0.0f),
          scale(score_scale * LOG2E) {
        if (step.soft_cap > 0) {
            bend = score_scale / static_cast<float>(step.soft_cap);
            scale = static_cast<float>(step.soft_cap) * LOG2E;
        }
        const size_t sizes[] = {size_t(num_queries + QUERIES) * query_stride(key_width) * sizeof(Operand),
                                size_t(KEYS) * query_stride(key_width) * sizeof(Packed),
                                size_t(KEYS) * value_width * sizeof(Packed) + 64, // `interleave` may write past the last
                                size_t(KEYS) * key_width * sizeof(Element),
                                size_t(KEYS) * value_width * sizeof(Element),
                                size_t(step.multiply_codes ? TOGETHER : QUERIES) * KEYS * 4,
                                size_t(QUERIES) * KEYS * sizeof(Operand),
                                size_t(num_queries) * value_width * 4,
                                size_t(num_queries + QUERIES) * 4,
                                size_t(num_queries + QUERIES) * 4};
        size_t offsets[11] = {0};
        for (int i = 0; i < 10; ++i) offsets[i + 1] = offsets[i] + (sizes[i] + 63) / 64 * 64;
        char *memory = scratch.reserve(offsets[10]);
        query = reinterpret_cast<Operand *>(memory + offsets[0]);
        keys = reinterpret_cast<Packed *>(memory + offsets[1]);
        values = reinterpret_cast<Packed *>(memory + offsets[2]);
        gathered_keys = reinterpret_cast<Element *>(memory + offsets[3]);
        gathered_values = reinterpret_cast<Element *>(memory + offsets[4]);
        scores = reinterpret_cast<float *>(memory + offsets[5]);
        weights = reinterpret_cast<Operand *>(memory + offsets[6]);
        numerator = reinterpret_cast<float *>(memory + offsets[7]);
        maximum = reinterpret_cast<float *>(memory + offsets[8]);
        denominator = reinterpret_cast<float *>(memory + offsets[9]);
        std::fill_n(numerator, size_t(num_queries) * value_width, 0.0f);
        std::fill_n(maximum, num_queries, -std::numeric_limits<float>::infinity());
        std::fill_n(denominator, num_queries, 0.0f);
    }
};

// Which of the keys of a block rows see. Beyond those, keys have the score minus infinity, and the weight zero.
struct Sight {
    int64_t limit, step;       // row i sees none from number limit + i * step on
    const int64_t *first_seen; // nor any before number first_seen[i] - origin; null: from the first on
    int64_t origin;

    int first(int64_t row) const { return first_seen ? std::max<int64_t>(0, first_seen[row] - origin) : 0; }
    int end(int64_t row, int count) const { return std::min<int64_t>(count, limit + row * step); }
    // Of the keys from number `start` on.
    Sight from(int64_t start) const { return {limit - start, step, first_seen, origin + start}; }
    // The first key that any of the rows sees, or one that is fewer than UNIT before it.
    int begin(int64_t num_rows) const {
        int lowest = first(0);
        for (int64_t row = 1; first_seen && row < num_rows; ++row) lowest = std::min(lowest, first(row));
        return lowest / UNIT * UNIT;
    }
};

// The queries of a register tile, or those that are attended to a block in codes together, from number `first` on, and
// which keys of a block they see: all of them some.
struct Tile {
    int first, num;
    int hidden[TOGETHER], seen[TOGETHER]; // query m sees [hidden[m], seen[m])
    int max_seen;
    bool changes; // whether there is anything to do for change_scores
};

// tanh(x). For bfloat16 without the digits that it has near zero: scores are soon added to others.
INLINE Floats bent(Floats x) {
    if constexpr (EXP2_DEGREE == 7) return tanh_lanes(x);
    const Floats one = broadcast(1.0f), power = exp2_lanes<EXP2_DEGREE>(mul(x, broadcast(2 * LOG2E)));
    return sub(one, div(broadcast(2.0f), add(power, one)));
}

// Scores of a tile become those that weights are made of: capped, then hidden.
TARGET void change_scores(const Work &work, const Tile &tile) {
    for (int m = 0; m < tile.num; ++m) {
        float *scores = work.scores + m * KEYS;
        if (work.bend > 0)
            for (int n = 0; n < tile.max_seen; n += 16)
                store(scores + n, bent(mul(load(scores + n), broadcast(work.bend))));
        if (tile.hidden[m] > 0)
            std::fill_n(scores, tile.hidden[m], -std::numeric_limits<float>::infinity());
    }
}

} // namespace
} // namespace attention
