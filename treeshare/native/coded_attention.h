// Attention to a block of a prompt's keys in codes of 8 bits, for models whose weights are in codes, too. Keys of
// generated tokens, which few queries meet, stay as they are.
//
// A query and a key are transformed as int8.h says and have a scale each, and so has a token's value. A row's weights
// in a block, each times the scale of its value, are codes, too: 0 to 254 parts of the largest, less 127. Products are
// summed up exactly by a level's `multiply_codes`; what is rounded is rounded alike at every level, and depends on the
// row and on one key or block. So all levels give the same bits, and a row's do not depend on the other rows.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "attention_work.h"
#include "int8.h"

namespace attention {
namespace {

constexpr int STEPS = 254;            // from no weight to the largest
constexpr int MIDDLE = STEPS / 2;     // is code 0
constexpr int64_t LANES = int8::PANEL; // keys, or columns of values, side by side

// A task's memory beside its Work's. I is D up to a multiple of 64, B the keys of a block up to a multiple of 64.
struct Coded {
    MultiplyCodes multiply; // null: no block is in codes
    int64_t key_width, value_width, inputs, mixed; // D, V, I; inputs that are mixed
    int64_t block;        // B
    bool is_finite;       // whether all values of the block are
    int8_t *queries;      // [ROWS * G][I]
    float *query_scales;  // [ROWS * G]
    int8_t *keys;         // [KEYS / 16][I / 4][16][4]
    int32_t *key_sums;    // [KEYS]
    float *key_scales;    // [KEYS]
    int8_t *values;       // [W / 16][B / 4][16][4]
    int32_t *value_sums;  // [W]
    float *value_scales;  // [KEYS]
    int8_t *weights;      // [TOGETHER][B]
    float *weight_scales; // [TOGETHER]
    float *corrections;   // [TOGETHER]
    float *sums;          // [TOGETHER][W]
    float *numbers;       // [I][16], or a query

    Coded(Scratch &scratch, const Work &work, int num_queries, const TreeStep &step)
        : multiply(step.multiply_codes), key_width(step.key_width), value_width(step.value_width),
          inputs(int8::round_up(key_width, int8::UNIT)), mixed(std::min(key_width & -key_width, int8::UNIT)) {
        if (!multiply) return;
        const int64_t width = work.value_width;
        const int64_t sizes[] = {num_queries * inputs, num_queries * 4, KEYS * inputs, KEYS * 4, KEYS * 4,
                                 KEYS * width,         width * 4,       KEYS * 4,      TOGETHER * KEYS,
                                 TOGETHER * 4,         TOGETHER * 4,    TOGETHER * width * 4, inputs * 16 * 4};
        int64_t offsets[14] = {0};
        for (int i = 0; i < 13; ++i) offsets[i + 1] = offsets[i] + int8::round_up(sizes[i], 64);
        char *memory = scratch.reserve(offsets[13]);
        queries = reinterpret_cast<int8_t *>(memory);
        query_scales = reinterpret_cast<float *>(memory + offsets[1]);
        keys = reinterpret_cast<int8_t *>(memory + offsets[2]);
        key_sums = reinterpret_cast<int32_t *>(memory + offsets[3]);
        key_scales = reinterpret_cast<float *>(memory + offsets[4]);
        values = reinterpret_cast<int8_t *>(memory + offsets[5]);
        value_sums = reinterpret_cast<int32_t *>(memory + offsets[6]);
        value_scales = reinterpret_cast<float *>(memory + offsets[7]);
        weights = reinterpret_cast<int8_t *>(memory + offsets[8]);
        weight_scales = reinterpret_cast<float *>(memory + offsets[9]);
        corrections = reinterpret_cast<float *>(memory + offsets[10]);
        sums = reinterpret_cast<float *>(memory + offsets[11]);
        numbers = reinterpret_cast<float *>(memory + offsets[12]);
    }

    TARGET void take_query(int number, const Element *query) {
        for (int64_t d = 0; d < inputs; d += 16) store(numbers + d, load_elements(key_width - d, query + d));
        int8::transform(numbers, inputs, mixed);
        query_scales[number] = int8::encode(numbers, inputs, queries + number * inputs);
    }
};

// Sums and differences of numbers that are APART and more.
template <int APART, int RADIX>
INLINE void mix_numbers(Floats (&r)[RADIX]) {
    if constexpr (APART < RADIX) {
#pragma GCC unroll 8
        for (int pair = 0; pair < RADIX / 2; ++pair) {
            const int j = pair / APART * 2 * APART + pair % APART;
            const Floats a = r[j], b = r[j + APART];
            r[j] = add(a, b);
            r[j + APART] = sub(a, b);
        }
        mix_numbers<2 * APART>(r);
    }
}

// Stages of a transform of columns, `distance` apart and more: RADIX of them at a time.
template <int RADIX>
INLINE void mix_columns(float *numbers, int64_t count, int64_t distance) {
    for (int64_t first = 0; first < count; first += RADIX * distance) {
        for (float *x = numbers + LANES * first; x < numbers + LANES * (first + distance); x += LANES) {
            Floats r[RADIX];
#pragma GCC unroll 8
            for (int j = 0; j < RADIX; ++j) r[j] = load(x + LANES * j * distance);
            mix_numbers<1>(r);
#pragma GCC unroll 8
            for (int j = 0; j < RADIX; ++j) store(x + LANES * j * distance, r[j]);
        }
    }
}

// Sixteen columns are transformed, as by int8::transform, but for its factor.
TARGET void transform_columns(float *numbers, int64_t count, int64_t width) {
    int64_t distance = 1;
    for (; width >= 8 * distance; distance *= 8) mix_columns<8>(numbers, count, distance);
    if (width == 4 * distance) mix_columns<4>(numbers, count, distance);
    if (width == 2 * distance) mix_columns<2>(numbers, count, distance);
}

// Scales of magnitudes: see int8::encode. Infinite ones are given as NaN.
INLINE Floats scales_of(Floats largest) {
    return select_lanes(greater(broadcast(int8::TINY), largest), broadcast(0.0f),
                        div(largest, broadcast(int8::LARGEST)));
}
INLINE Floats factors_of(Floats largest) {
    return only(at_least(largest, broadcast(int8::TINY)), div(broadcast(int8::LARGEST), largest));
}

// Four codes each of sixteen outputs, [4][16], become words, [16][4].
INLINE void store_words(const int8_t (&codes)[4][16], int8_t *words) {
    uint32_t found[16]; // not byte by byte: so a compiler makes vectors of it
    for (int n = 0; n < 16; ++n) {
        found[n] = static_cast<uint8_t>(codes[0][n]);
        for (int i = 1; i < 4; ++i) found[n] |= static_cast<uint32_t>(static_cast<uint8_t>(codes[i][n])) << 8 * i;
    }
    std::memcpy(words, found, sizeof(found));
}
INLINE void store_sums(Floats sums, int32_t *target) {
    float numbers[16];
    store(numbers, sums);
    for (int n = 0; n < 16; ++n) target[n] = static_cast<int32_t>(numbers[n]);
}

// Up to sixteen transposed keys, [D][stride], become a panel.
TARGET void code_panel(Coded &coded, const Element *source, int64_t stride, int64_t count, int64_t first) {
    float *x = coded.numbers;
    for (int64_t d = 0; d < coded.inputs; ++d)
        store(x + LANES * d, d < coded.key_width ? load_elements(count, source + d * stride) : broadcast(0.0f));
    transform_columns(x, coded.inputs, coded.mixed);
    Floats largest = broadcast(0.0f), zeros = largest, sums = largest;
    for (int64_t d = 0; d < coded.key_width; ++d) {
        const Floats number = load(x + LANES * d);
        largest = max(largest, absolute(number));
        zeros = add(zeros, sub(number, number)); // NaN where a number is not finite
    }
    largest = add(largest, zeros);
    const Floats root = broadcast(1.0f / std::sqrt(static_cast<float>(coded.mixed))), factors = factors_of(largest);
    store(coded.key_scales + first, mul(scales_of(largest), root));
    alignas(64) int8_t codes[4][16];
    int8_t *words = coded.keys + first * coded.inputs;
    for (int64_t d = 0; d < coded.inputs; d += 4, words += 64) {
        for (int i = 0; i < 4; ++i) {
            const Floats whole = round_whole(mul(load(x + LANES * (d + i)), factors));
            sums = add(sums, whole);
            store_codes(codes[i], whole);
        }
        store_words(codes, words);
    }
    store_sums(sums, coded.key_sums + first);
}

TARGET void code_keys(Coded &coded, const Element *source, int64_t stride, int count) {
    for (int64_t first = 0; first < count; first += LANES)
        code_panel(coded, source + first, stride, count - first, first);
}

// The largest magnitude of a value: NaN where a number is not finite.
INLINE float largest_of(const Element *value, int64_t width) {
    Floats largest = broadcast(0.0f), zeros = largest;
    for (int64_t column = 0; column < width; column += 16) {
        const Floats number = load_elements(width - column, value + column);
        largest = max(largest, absolute(number));
        zeros = add(zeros, sub(number, number));
    }
    return bits(not_a_number(zeros)) ? NAN : max_lanes(largest);
}

// Values, [count][stride], become panels, with zeros up to B tokens and W columns.
TARGET void code_values(Coded &coded, const Element *source, int64_t stride, int64_t width, int64_t count) {
    coded.block = int8::round_up(count, int8::UNIT);
    float *largest = coded.value_scales;
    coded.is_finite = true;
    for (int64_t token = 0; token < coded.block; ++token) {
        largest[token] = token < count ? largest_of(source + token * stride, coded.value_width) : 0.0f;
        coded.is_finite &= largest[token] == largest[token];
    }
    alignas(64) float factors[KEYS];
    for (int64_t token = 0; token < coded.block; token += 16) {
        store(factors + token, factors_of(load(largest + token)));
        store(coded.value_scales + token, scales_of(load(largest + token)));
    }
    alignas(64) int8_t codes[4][16];
    for (int64_t column = 0; column < width; column += LANES) {
        const int64_t left = coded.value_width - column;
        int8_t *words = coded.values + column * coded.block;
        Floats sums = broadcast(0.0f);
        for (int64_t token = 0; token < coded.block; token += 4, words += 64) {
            for (int64_t i = token; i < token + 4; ++i) {
                const Floats number = load_elements(i < count ? left : 0, source + i * stride + column);
                const Floats whole = round_whole(mul(number, broadcast(factors[i])));
                sums = add(sums, whole);
                store_codes(codes[i - token], whole);
            }
            store_words(codes, words);
        }
        store_sums(sums, coded.value_sums + column);
    }
}

// One step of online softmax, see vector_attention.h, in three parts, each for all rows of a tile: what ends a row's
// part takes a while, and the next row's does not wait for it. First its new maximum, of the keys that it sees, and the
// correction of what was summed up below the old one.
TARGET void raise_maximum(Work &work, Coded &coded, const Tile &tile, int m) {
    const float *scores = work.scores + m * KEYS;
    Floats largest = broadcast(-std::numeric_limits<float>::infinity());
    for (int n = 0; n < tile.seen[m]; n += 16) largest = max_where(first16(tile.seen[m] - n), largest, load(scores + n));
    float &maximum = work.maximum[tile.first + m];
    const float before = maximum;
    maximum = std::max(before, max_lanes(largest) * work.scale);
    coded.corrections[m] = first_lane(exp2_lanes<7>(broadcast(before - maximum)));
}

// Then its scores, [B], become weights times their values' scales.
TARGET void weigh(Work &work, Coded &coded, const Tile &tile, int m) {
    float *scores = work.scores + m * KEYS;
    const Floats shift = broadcast(work.maximum[tile.first + m]), scale = broadcast(work.scale);
    Floats sum = broadcast(0.0f), largest = sum;
    for (int n = 0; n < coded.block; n += 16) {
        const Floats power = exp2_lanes<EXP2_DEGREE>(mul_sub(load(scores + n), scale, shift));
        const Floats weight = n + 16 <= tile.seen[m] ? power : only(first16(tile.seen[m] - n), power);
        const Floats part = mul(weight, load(coded.value_scales + n));
        sum = add(sum, weight);
        largest = max(largest, part);
        store(scores + n, part);
    }
    float &denominator = work.denominator[tile.first + m];
    denominator = std::fma(denominator, coded.corrections[m], sum_lanes(sum));
    coded.weight_scales[m] = max_lanes(largest);
}

// And these become codes.
TARGET void code_weights(const Work &work, Coded &coded, const Tile &tile, int m) {
    const float *weights = work.scores + m * KEYS, largest = coded.weight_scales[m];
    const bool is_zero = !(largest >= int8::TINY);
    const Floats factor = broadcast(is_zero ? 0.0f : STEPS / largest), middle = broadcast(MIDDLE);
    int8_t *codes = coded.weights + m * coded.block;
    for (int n = 0; n < coded.block; n += 16)
        store_codes(codes + n, sub(round_whole(mul(load(weights + n), factor)), middle));
    coded.weight_scales[m] = is_zero ? 0.0f : largest / STEPS;
    for (int n = 0; !coded.is_finite && n < tile.seen[m]; ++n)
        if (weights[n] != weights[n]) coded.weight_scales[m] = NAN;
}

// numerator = numerator * correction + weights . values
TARGET void add_coded_values(Work &work, const Coded &coded, const Tile &tile) {
    const int64_t width = work.value_width;
    for (int64_t column = 0; column < width; column += 16) {
        float totals[16];
        for (int n = 0; n < 16; ++n) totals[n] = static_cast<float>(MIDDLE * coded.value_sums[column + n]);
        for (int m = 0; m < tile.num; ++m) {
            float *place = work.numerator + (tile.first + m) * width + column;
            const Floats sum = add(load(coded.sums + m * width + column), load(totals));
            const Floats added = mul(sum, broadcast(coded.weight_scales[m]));
            store(place, mul_add(load(place), broadcast(coded.corrections[m]), added));
        }
    }
}

// Attend the queries of a tile, up to TOGETHER, to the block of keys in codes.
TARGET void attend_coded(Work &work, Coded &coded, const Tile &tile) {
    const int64_t inputs = coded.inputs, width = work.value_width, panels = (tile.max_seen + LANES - 1) / LANES;
    const CodeProducts of_keys = {coded.queries + tile.first * inputs, coded.keys, coded.key_sums, work.scores,
                                  tile.num, inputs, panels, KEYS};
    coded.multiply(&of_keys);
    for (int m = 0; m < tile.num; ++m) {
        float *scores = work.scores + m * KEYS;
        const Floats scale = broadcast(coded.query_scales[tile.first + m]);
        for (int64_t n = 0; n < panels * LANES; n += 16)
            store(scores + n, mul(load(scores + n), mul(scale, load(coded.key_scales + n))));
    }
    if (tile.changes) change_scores(work, tile);
    for (int m = 0; m < tile.num; ++m) raise_maximum(work, coded, tile, m);
    for (int m = 0; m < tile.num; ++m) weigh(work, coded, tile, m);
    for (int m = 0; m < tile.num; ++m) code_weights(work, coded, tile, m);
    const CodeProducts of_values = {coded.weights, coded.values, coded.value_sums, coded.sums,
                                    tile.num, coded.block, width / LANES, width};
    coded.multiply(&of_values);
    add_coded_values(work, coded, tile);
}

} // namespace
} // namespace attention
