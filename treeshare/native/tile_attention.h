// Attention to a packed block of keys on tiles; attention.h includes it in the place of its own for vectors.
//
// Sixteen queries are the left side of a product with keys, then their weights of one with values. A block's sums of
// values begin at zero and are then added to the numerator, so it does not matter what is in the tiles beside a row:
// weights of keys that it does not see are zero, and so are products with them.

#pragma once

#include "attention_work.h"
#include "common.h"

namespace attention {
namespace {

using tiles::DEPTH;
using tiles::SIDE;

constexpr int ELEMENTS = SIDE * DEPTH; // of a tile
constexpr int MAX_TILES = 4;           // of keys or columns that are computed together

// The first `count` of 32 numbers of two rows, `stride` apart, as pairs: sixteen here, sixteen there. What is missing,
// of the `num_rows` rows too, is zero.
INLINE void interleave_tiles(const Element *even, int64_t stride, int num_rows, int count, Packed *low, Packed *high) {
    const __mmask32 mask = first32(count);
    const __m512i a = num_rows > 0 ? _mm512_maskz_loadu_epi16(mask, even) : _mm512_setzero_si512();
    const __m512i b = num_rows > 1 ? _mm512_maskz_loadu_epi16(mask, even + stride) : _mm512_setzero_si512();
    _mm512_store_si512(low, _mm512_permutex2var_epi16(a, even_odd(false), b));
    if (count > SIDE) _mm512_store_si512(high, _mm512_permutex2var_epi16(a, even_odd(true), b));
}

// Transposed keys, [D][stride], become tiles [KEYS / 16][D / 32]: sixteen keys side by side, pairs of D below one
// another.
TARGET void pack_keys(const Element *source, int64_t stride, int key_width, int count, Packed *packed) {
    const int64_t group = query_stride(key_width) / DEPTH * ELEMENTS; // from sixteen keys to the next
    for (int first = 0; first < count; first += 2 * SIDE, packed += 2 * group)
        for (int d = 0; d < query_stride(key_width); d += STEP)
            interleave_tiles(source + d * stride + first, stride, key_width - d, count - first, packed + d * SIDE,
                             packed + group + d * SIDE);
}

// The same of keys that are not transposed, [count][D].
TARGET void pack_token_keys(const Element *source, int key_width, int count, Packed *packed) {
    for (int first = 0; first < count; first += SIDE)
        for (int d = 0; d < query_stride(key_width); d += DEPTH, packed += ELEMENTS) {
            const int num_words = std::min(SIDE, (key_width - d) / STEP);
            pack_words(source + first * key_width + d, key_width, count - first, num_words, packed, STEP * SIDE);
            std::fill_n(packed + num_words * STEP * SIDE, (SIDE - num_words) * STEP * SIDE, Packed(0));
        }
}

// Values, [count][stride], become tiles [KEYS / 32][W / 16]: sixteen columns side by side, pairs of tokens below one
// another, zeros for those that are missing in the last.
TARGET void pack_values(const Element *source, int64_t stride, int value_width, int count, Packed *packed) {
    for (int token = 0; token < count; packed += value_width / SIDE * ELEMENTS)
        for (const int last = token + DEPTH; token < last; token += STEP, source += STEP * stride)
            for (int column = 0; column < value_width; column += 2 * SIDE) {
                Packed *target = packed + column / SIDE * ELEMENTS + token % DEPTH * SIDE;
                interleave_tiles(source + column, stride, count - token, value_width - column, target, target + ELEMENTS);
            }
}

// out [16][16 * J] = sixteen rows of `left` . J columns of tiles on the right: `depth` tiles from left to right, and
// from top to bottom `right_depth` elements apart, columns `right_column` apart. Strides of `left` and `out` are bytes.
template <int J>
INLINE void multiply_tiles(const Operand *left, int64_t left_stride, int depth, const Packed *right,
                           int64_t right_depth, int64_t right_column, float *out, int64_t out_stride) {
    tiles::clear<0>();
    if (J > 1) tiles::clear<1>();
    if (J > 2) tiles::clear<2>();
    if (J > 3) tiles::clear<3>();
    for (; depth > 0; --depth, left += DEPTH, right += right_depth) {
        tiles::load<4>(left, left_stride);
        tiles::load<5>(right, 64);
        tiles::multiply<0, 4, 5>();
        if (J > 1) tiles::load<6>(right + right_column, 64);
        if (J > 1) tiles::multiply<1, 4, 6>();
        if (J > 2) tiles::load<7>(right + 2 * right_column, 64);
        if (J > 2) tiles::multiply<2, 4, 7>();
        if (J > 3) tiles::load<5>(right + 3 * right_column, 64);
        if (J > 3) tiles::multiply<3, 4, 5>();
    }
    tiles::store<0>(out, out_stride);
    if (J > 1) tiles::store<1>(out + SIDE, out_stride);
    if (J > 2) tiles::store<2>(out + 2 * SIDE, out_stride);
    if (J > 3) tiles::store<3>(out + 3 * SIDE, out_stride);
}

TARGET void multiply_columns(int num, const Operand *left, int64_t left_stride, int depth, const Packed *right,
                             int64_t right_depth, int64_t right_column, float *out, int64_t out_stride) {
    switch (num) {
    case 1: return multiply_tiles<1>(left, left_stride, depth, right, right_depth, right_column, out, out_stride);
    case 2: return multiply_tiles<2>(left, left_stride, depth, right, right_depth, right_column, out, out_stride);
    case 3: return multiply_tiles<3>(left, left_stride, depth, right, right_depth, right_column, out, out_stride);
    default: return multiply_tiles<4>(left, left_stride, depth, right, right_depth, right_column, out, out_stride);
    }
}

// numerator = numerator * correction + sums, of `width` columns. A sum that is -0 becomes 0: it is one or the other by
// the number of zeros that were added to it.
INLINE void add_sums(const float *sums, int width, float correction, float *numerator) {
    const Floats factor = broadcast(correction), zero = broadcast(0.0f);
    for (int j = 0; j < width; j += 16)
        store(numerator + j, mul_add(load(numerator + j), factor, add(load(sums + j), zero)));
}

// 2 ** x, zero for minus infinity and NaN for NaN; exact for whole numbers. The relative error is below 3e-6.
INLINE Floats weigh(Floats x) {
    const Floats f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC); // x less the whole number below
    Floats y = mul_add(broadcast(1.3426795e-2f), f, broadcast(5.2242298e-2f));
    y = mul_add(y, f, broadcast(2.4128029e-1f));
    y = mul_add(y, f, broadcast(6.9304484e-1f));
    y = mul_add(y, f, broadcast(1.0f));
    return scale_by_power(y, x); // which is rounded down there
}

TARGET float largest_score(const float *scores, int seen) {
    Floats largest = broadcast(-std::numeric_limits<float>::infinity());
    for (; seen >= 16; seen -= 16, scores += 16) largest = max(largest, load(scores));
    return max_lanes(max_where(first16(seen), largest, load(scores)));
}

// A row of scores becomes weights below its maximum `shift`, zeros from `seen` on; returns their sum.
TARGET float weigh_scores(const float *scores, int seen, int count, float scale, float shift, Operand *weights) {
    const Floats factor = broadcast(scale), shifts = broadcast(shift);
    Floats sum = broadcast(0.0f);
    int n = 0;
    for (; n + DEPTH <= seen; n += DEPTH) {
        const Floats low = weigh(mul_sub(load(scores + n), factor, shifts));
        const Floats high = weigh(mul_sub(load(scores + n + SIDE), factor, shifts));
        sum = add(add(sum, low), high);
        _mm512_store_si512(weights + n, (__m512i)_mm512_cvtne2ps_pbh(high, low));
    }
    for (; n < count; n += SIDE) {
        const Floats weight = only(first16(seen - n), weigh(mul_sub(load(scores + n), factor, shifts)));
        sum = add(sum, weight);
        store_operands(weights + n, weight);
    }
    return sum_lanes(sum);
}

// One step of online softmax for the rows of a tile: scores become weights below the rows' new maxima. Corrections are the
// factors for what was summed up below the old ones.
TARGET void softmax_rows(Work &work, const Tile &tile, int count, float *corrections) {
    alignas(64) float maxima[SIDE], sums[SIDE];
    for (int m = 0; m < tile.num; ++m) maxima[m] = largest_score(work.scores + m * KEYS, tile.seen[m]);
    const Mask mask = first16(tile.num);
    const Floats old = load(work.maximum + tile.first);
    const Floats shifts = max_where(mask, old, mul(load(maxima), broadcast(work.scale)));
    const Floats factors = exp2_lanes<7>(sub(old, shifts));
    store(maxima, shifts);
    store(corrections, factors);
    for (int m = 0; m < tile.num; ++m)
        sums[m] = weigh_scores(work.scores + m * KEYS, tile.seen[m], count, work.scale, maxima[m],
                               work.weights + m * KEYS);
    float *denominator = work.denominator + tile.first;
    store(work.maximum + tile.first, shifts);
    store(denominator, select_lanes(mask, mul_add(load(denominator), factors, load(sums)), load(denominator)));
}

// Attend a tile's queries to the packed block.
TARGET void attend_tile(Work &work, const Tile &tile, int /*packed_count*/) {
    const int width = work.value_width, stride = query_stride(work.key_width);
    const int num_groups = (tile.max_seen + SIDE - 1) / SIDE;
    const int depth = stride / DEPTH, value_depth = (tile.max_seen + DEPTH - 1) / DEPTH;
    for (int group = 0; group < num_groups; group += MAX_TILES)
        multiply_columns(num_groups - group, work.query + tile.first * stride, stride * sizeof(Operand), depth,
                         work.keys + group * depth * ELEMENTS, ELEMENTS, depth * ELEMENTS, work.scores + group * SIDE,
                         KEYS * sizeof(float));
    if (tile.changes) change_scores(work, tile);
    alignas(64) float corrections[QUERIES];
    softmax_rows(work, tile, value_depth * DEPTH, corrections);
    alignas(64) float sums[QUERIES][MAX_TILES * SIDE];
    for (int column = 0; column < width; column += MAX_TILES * SIDE) {
        const int columns = std::min(MAX_TILES * SIDE, width - column);
        multiply_columns(columns / SIDE, work.weights, KEYS * sizeof(Operand), value_depth,
                         work.values + column / SIDE * ELEMENTS, width / SIDE * ELEMENTS, ELEMENTS, sums[0],
                         sizeof(sums[0]));
        for (int m = 0; m < tile.num; ++m)
            add_sums(sums[m], columns, corrections[m], work.numerator + (tile.first + m) * width + column);
    }
}

} // namespace
} // namespace attention
