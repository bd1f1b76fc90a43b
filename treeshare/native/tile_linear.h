// A linear layer on tiles, for any number of rows; see linear.h, whose place it takes.
//
// The weights are read where they are, as the left side of a product: a tile is sixteen outputs of 32 inputs. The rows
// are its right side and are packed once for all outputs, so that no weight is ever packed. Sums come out as
// [outputs][rows] and change sides as they are rounded. An output's sum runs over all inputs in their order, in one
// tile, so a row's bits do not depend on how many rows there are.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace linear {
namespace {

using tiles::DEPTH;
using tiles::SIDE;
using tiles::SIZE;

constexpr int PANEL = 2 * SIDE; // outputs that are computed together
constexpr int BLOCK = 2 * SIDE; // rows
static_assert(STEP == 2 && sizeof(Element) == 2, "tiles of bfloat16");

constexpr int64_t round_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// Sixteen rows of 32 inputs become a tile: a word is two inputs, sixteen rows side by side. What is missing is zero.
TARGET void pack_rows(const Element *x, int64_t num_inputs, int64_t num_rows, int64_t left, uint32_t *packed) {
    const int num_words = std::min<int64_t>(SIDE, left / STEP);
    transpose_words(reinterpret_cast<const uint32_t *>(x), num_inputs / STEP, num_rows, num_words, packed, SIDE);
    std::fill_n(packed + num_words * SIDE, (SIDE - num_words) * SIDE, 0);
}

// The weights of a panel as tiles.
struct Panel {
    const Element *weight; // [PANEL][stride]: whole tiles
    int64_t stride;
    const Element *rest; // [PANEL][DEPTH]: the inputs after the last whole tile, zeros behind them; null if there are none
    const float *bias; // null: none
    int num_outputs;
};

// Fetches what is needed later into L2, some cache lines at a time.
struct Ahead {
    const char *next, *last;
    int lines; // at a time
};

INLINE void fetch(Ahead &ahead) {
    for (int i = 0; i < ahead.lines && ahead.next < ahead.last; ++i, ahead.next += 64)
        _mm_prefetch(ahead.next, _MM_HINT_T1);
}

// Tiles 0 to 3 += a panel's sixteen and sixteen outputs, `stride` apart . ROWS tiles of rows
template <int ROWS>
INLINE void add_tiles(const Element *weight, int64_t stride, const uint32_t *x, int64_t x_stride) {
    tiles::load<4>(weight, stride * sizeof(Element));
    tiles::load<6>(x, 64);
    tiles::multiply<0, 4, 6>();
    tiles::load<5>(weight + SIDE * stride, stride * sizeof(Element));
    tiles::multiply<2, 5, 6>();
    if (ROWS > 1) {
        tiles::load<7>(x + x_stride, 64);
        tiles::multiply<1, 4, 7>();
        tiles::multiply<3, 5, 7>();
    }
}

// sums [ROWS][PANEL][SIDE] = panel . ROWS tiles of packed rows, `x_stride` words apart
template <int ROWS>
INLINE void multiply(const Panel &panel, int64_t num_inputs, const uint32_t *x, int64_t x_stride, Ahead &ahead,
                     float *sums) {
    tiles::clear<0>();
    tiles::clear<1>();
    tiles::clear<2>();
    tiles::clear<3>();
    const Element *weight = panel.weight;
    for (int64_t left = num_inputs; left >= DEPTH; left -= DEPTH, weight += DEPTH, x += SIZE) {
        fetch(ahead);
        add_tiles<ROWS>(weight, panel.stride, x, x_stride);
    }
    if (panel.rest) add_tiles<ROWS>(panel.rest, DEPTH, x, x_stride);
    tiles::store<0>(sums, 64);
    tiles::store<2>(sums + SIZE, 64);
    if (ROWS > 1) {
        tiles::store<1>(sums + 2 * SIZE, 64);
        tiles::store<3>(sums + 3 * SIZE, 64);
    }
}

// Sums [PANEL][SIDE] become rows of outputs: the bias is added, and two neighbouring outputs of a row are a word.
TARGET void finish(const float *sums, const Panel &panel, int num_rows, Element *out, int64_t out_stride) {
    __m512i words[SIDE];
    alignas(64) static constexpr uint16_t TURNS[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                       8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i turns = _mm512_load_si512(TURNS);
    for (int i = 0; i < SIDE; ++i) {
        const float even = panel.bias ? panel.bias[2 * i] : 0.0f, odd = panel.bias ? panel.bias[2 * i + 1] : 0.0f;
        const Floats low = add(load(sums + 2 * i * SIDE), broadcast(even));
        const Floats high = add(load(sums + (2 * i + 1) * SIDE), broadcast(odd));
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(high, low); // low's sixteen first
        words[i] = _mm512_permutexvar_epi16(turns, both);
    }
    transpose(words);
    const __mmask32 mask = first32(panel.num_outputs);
    for (int i = 0; i < num_rows; ++i) _mm512_mask_storeu_epi16(out + i * out_stride, mask, words[i]);
}

// What of a panel's weights cannot be read in place is copied, with zeros behind it.
TARGET Panel make_panel(const Linear<Element> &linear, int64_t first, Element *copy, Element *rest, float *bias) {
    const int64_t num_inputs = linear.num_inputs, whole = num_inputs / DEPTH * DEPTH;
    const int count = std::min<int64_t>(PANEL, linear.num_outputs - first);
    const Element *weight = linear.weight + first * num_inputs;
    if (linear.bias)
        for (int i = 0; i < PANEL; i += SIDE) store(bias + i, load_elements(count - i, linear.bias + first + i));
    if (whole < num_inputs) {
        std::fill_n(rest, PANEL * DEPTH, 0);
        for (int i = 0; i < count; ++i)
            std::copy_n(weight + i * num_inputs + whole, num_inputs - whole, rest + i * DEPTH);
    }
    if (count < PANEL) {
        std::copy_n(weight, count * num_inputs, copy);
        std::fill_n(copy + count * num_inputs, (PANEL - count) * num_inputs, 0);
        weight = copy;
    }
    return {weight, num_inputs, whole < num_inputs ? rest : nullptr, linear.bias ? bias : nullptr, count};
}

// out = x weight^T + bias: x [num_rows][num_inputs], out [num_rows][num_outputs]. Every thread of a parallel region
// calls it; all have finished when it returns.
TARGET void apply(const Linear<Element> &linear, const Element *x, Element *out, int64_t num_rows) {
    if (num_rows == 0) return;
    const int64_t num_inputs = linear.num_inputs, num_outputs = linear.num_outputs;
    const int64_t depth = round_up(num_inputs, DEPTH) / DEPTH, height = round_up(num_rows, SIDE) / SIDE;
    const int64_t x_stride = depth * SIZE; // words of sixteen packed rows
    static thread_local Scratch rows, scratch;
    uint32_t *packed;
#pragma omp single copyprivate(packed)
    packed = reinterpret_cast<uint32_t *>(rows.reserve(height * x_stride * sizeof(uint32_t)));
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < height * depth; ++tile) {
        const int64_t row = tile / depth * SIDE, first = tile % depth * DEPTH;
        pack_rows(x + row * num_inputs + first, num_inputs, num_rows - row, num_inputs - first, packed + tile * SIZE);
    }
    const int64_t num_blocks = round_up(num_rows, BLOCK) / BLOCK;
    Element *copy = reinterpret_cast<Element *>(scratch.reserve(PANEL * num_inputs * sizeof(Element)));
    alignas(64) Element rest[PANEL * DEPTH];
    alignas(64) float bias[PANEL], sums[2 * PANEL * SIDE];
    const tiles::Session session;
#pragma omp for schedule(static)
    for (int64_t first = 0; first < num_outputs; first += PANEL) {
        const Panel panel = make_panel(linear, first, copy, rest, bias);
        const char *below = reinterpret_cast<const char *>(linear.weight + (first + PANEL) * num_inputs);
        Ahead ahead = {below, below + PANEL * num_inputs * sizeof(Element), int((PANEL + num_blocks - 1) / num_blocks)};
        for (int64_t row = 0; row < num_rows; row += BLOCK) {
            const uint32_t *source = packed + row / SIDE * x_stride;
            Element *target = out + row * num_outputs + first;
            const int count = std::min<int64_t>(BLOCK, num_rows - row);
            if (count > SIDE)
                multiply<2>(panel, num_inputs, source, x_stride, ahead, sums);
            else
                multiply<1>(panel, num_inputs, source, x_stride, ahead, sums);
            for (int i = 0; i < count; i += SIDE)
                finish(sums + i * PANEL, panel, std::min(SIDE, count - i), target + i * num_outputs, num_outputs);
        }
    }
}

} // namespace

extern "C" void EXPORT(linear)(const Linear<Element> *linear, const Element *x, Element *out, int64_t num_rows) {
#pragma omp parallel
    apply(*linear, x, out, num_rows);
}

} // namespace linear
