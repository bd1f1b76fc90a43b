// Attention to a packed block of keys in vectors; attention.h includes it where a level has no tiles.
//
// Scores and sums of values are register tiles of up to six queries by up to ATTENTION_VECTORS vectors.

#pragma once

#include <cmath>
#include <limits>

#include "attention_work.h"
#include "common.h"

namespace attention {
namespace {

constexpr int NEAR = 8; // steps ahead that packed keys and values are fetched from L2

// So that no template is instantiated for more vectors than a register tile has.
constexpr int cap_vectors(int vectors) { return std::min(vectors, ATTENTION_VECTORS); }

// Keys of the group that begins at key `first` of `count`: the last group is as narrow as its keys allow.
INLINE int group_width(int first, int count) {
    return std::min(GROUP, (count - first + STRIP - 1) / STRIP * STRIP);
}

// Interleave rows of transposed keys, [D][stride], STEP at a time; keys from `count` on become zero.
TARGET void pack_keys(const Element *source, int64_t stride, int key_width, int count, Packed *packed) {
    for (int first = 0; first < count; first += GROUP) {
        const int last = first + group_width(first, count);
        for (int d = 0; d < key_width; d += STEP) {
            for (int strip = first; strip < last; strip += STRIP) {
                interleave(source + d * stride + strip, stride, STEP, count - strip, packed);
                packed += STEP * STRIP;
            }
        }
    }
}

// The same of keys that are not transposed, [count][D].
TARGET void pack_token_keys(const Element *source, int key_width, int count, Packed *packed) {
    constexpr int WORD = std::max<int>(STEP, 4 / sizeof(Element)); // numbers that pack_words takes together
    for (int first = 0; first < count; first += GROUP) {
        const int width = group_width(first, count), column = width * STEP;
        for (int strip = 0; strip < width; strip += 16)
            for (int d = 0; d < key_width; d += 16 * WORD)
                pack_words(source + (first + strip) * key_width + d, key_width, count - first - strip,
                           std::min(16, (key_width - d) / WORD), packed + d * width + strip * STEP, column);
        packed += width * key_width;
    }
}

// Interleave STEP neighbouring rows of values, [count][stride]; a missing last row counts as zero.
TARGET void pack_values(const Element *source, int64_t stride, int value_width, int count, Packed *packed) {
    for (int token = 0; token < count; token += STEP) {
        for (int column = 0; column < value_width; column += STRIP)
            interleave(source + token * stride + column, stride, count - token, value_width - column,
                       packed + STEP * column);
        packed += STEP * value_width;
    }
}

// scores[m][n] = query[m] . key[n] for a group of J vectors of keys
template <int M, int J>
INLINE void score_group(const Operand *query, const Packed *keys, int key_width, float *scores) {
    Floats sums[M][J];
    clear(sums);
    for (int d = 0; d < key_width; d += STEP, keys += STEP * 16 * J) {
        for (int j = 0; j < J; ++j) __builtin_prefetch(keys + STEP * 16 * (NEAR * J + j), 0, 3);
        add_products(sums, query + d, key_width, keys);
    }
    const auto &results = complete_sums(sums);
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < J; ++j) store(scores + m * KEYS + 16 * j, results[m][j]);
}

// The same for `count` packed keys, of which `packed_count` lie in the block.
template <int M>
TARGET void score(const Operand *query, const Packed *keys, int key_width, int count, int packed_count, float *scores) {
    for (int first = 0; first < count; first += GROUP, keys += GROUP * key_width) {
        switch (group_width(first, packed_count) / 16) {
        case 4: score_group<M, cap_vectors(4)>(query, keys, key_width, scores + first); break;
        case 3: score_group<M, cap_vectors(3)>(query, keys, key_width, scores + first); break;
        case 2: score_group<M, cap_vectors(2)>(query, keys, key_width, scores + first); break;
        default: score_group<M, 1>(query, keys, key_width, scores + first);
        }
    }
}

// One step of online softmax: a row of scores becomes weights below the row's new maximum. Of `count` keys the row sees
// the first `seen`, or some of them, of a finite score. Returns the factor that corrects what was summed up below the old maximum.
TARGET float online_softmax(const float *scores, Operand *weights, int seen, int count, float scale, float *maximum,
                            float *denominator) {
    Floats largest = broadcast(-std::numeric_limits<float>::infinity());
    for (int n = 0; n < seen; n += 16) largest = max_where(first16(seen - n), largest, load(scores + n));
    const float old_maximum = *maximum, new_maximum = std::max(old_maximum, max_lanes(largest) * scale);
    const Floats shift = broadcast(new_maximum), factor = broadcast(scale);
    Floats sum = broadcast(0.0f);
    for (int n = 0; n < count; n += 16) {
        const Floats power = mul_sub(load(scores + n), factor, shift);
        const Floats weight = only(first16(seen - n), exp2_lanes<EXP2_DEGREE>(power));
        sum = add(sum, weight);
        store_operands(weights + n, weight);
    }
    const float correction = first_lane(exp2_lanes<7>(broadcast(old_maximum - new_maximum)));
    *maximum = new_maximum;
    *denominator = std::fma(*denominator, correction, sum_lanes(sum));
    return correction;
}

// numerator[m] = numerator[m] * correction[m] + weights[m] . values, for J vectors of sixteen columns
template <int M, int J>
INLINE void add_values(const Operand *weights, const Packed *values, int value_width, int count,
                       const float *correction, float *numerator) {
    Floats sums[M][J];
    clear(sums);
    for (int token = 0; token < count; token += STEP, values += STEP * value_width) {
        for (int j = 0; j < J; ++j) __builtin_prefetch(values + STEP * (NEAR * value_width + 16 * j), 0, 3);
        add_products(sums, weights + token, KEYS, values);
    }
    const auto &results = complete_sums(sums);
    for (int m = 0; m < M; ++m) {
        const Floats factor = broadcast(correction[m]);
        for (int j = 0; j < J; ++j) {
            float *place = numerator + m * value_width + 16 * j;
            store(place, mul_add(load(place), factor, results[m][j]));
        }
    }
}

// Attend the M queries of a tile to the block of `packed_count` keys.
template <int M>
TARGET void attend_rows(Work &work, const Tile &tile, int packed_count) {
    const int key_width = work.key_width, width = work.value_width, query = tile.first, count = tile.max_seen;
    float corrections[M];
    score<M>(work.query + query * key_width, work.keys, key_width, count, packed_count, work.scores);
    if (tile.changes) change_scores(work, tile);
    for (int m = 0; m < M; ++m)
        corrections[m] = online_softmax(work.scores + m * KEYS, work.weights + m * KEYS, tile.seen[m], count, work.scale,
                                        work.maximum + query + m, work.denominator + query + m);
    for (int column = 0; column < width; column += 16 * ATTENTION_VECTORS) {
        const Packed *values = work.values + STEP * column;
        float *numerator = work.numerator + query * width + column;
        switch (std::min(ATTENTION_VECTORS, (width - column) / 16)) {
        case 4: add_values<M, cap_vectors(4)>(work.weights, values, width, count, corrections, numerator); break;
        case 3: add_values<M, cap_vectors(3)>(work.weights, values, width, count, corrections, numerator); break;
        case 2: add_values<M, cap_vectors(2)>(work.weights, values, width, count, corrections, numerator); break;
        default: add_values<M, 1>(work.weights, values, width, count, corrections, numerator);
        }
    }
}

TARGET void attend_tile(Work &work, const Tile &tile, int packed_count) {
    switch (tile.num) {
    case 6: return attend_rows<6>(work, tile, packed_count);
    case 5: return attend_rows<5>(work, tile, packed_count);
    case 4: return attend_rows<4>(work, tile, packed_count);
    case 3: return attend_rows<3>(work, tile, packed_count);
    case 2: return attend_rows<2>(work, tile, packed_count);
    default: return attend_rows<1>(work, tile, packed_count);
    }
}

} // namespace
} // namespace attention
