// A linear layer on tiles, for any number of rows; see linear.h, whose place it takes.
//
// Weights are the left side of a product, as they lie in memory: a tile is sixteen outputs of 32 inputs. The rows are
// its right side; they change sides once for all outputs. Sums come out as [outputs][rows] and change sides as they are
// rounded. An output's sum runs over all inputs in their order in one tile, so a row's bits do not depend on how many
// rows there are.
//
// A thread takes panel after panel of weights and multiplies it by all rows of a stretch, which stays in L2. Meanwhile
// the next panel is fetched.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace linear {
namespace {

using tiles::DEPTH;
using tiles::SIDE;
using tiles::SIZE;

constexpr int PANEL = 2 * SIDE;      // outputs that are computed together
constexpr int BLOCK = 2 * SIDE;      // rows that are computed together
constexpr int64_t MAX_STRETCH = 256; // rows
static_assert(STEP == 2 && sizeof(Element) == 2, "tiles of bfloat16");

constexpr int64_t divide_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit; }

// Sixteen rows of 32 inputs become a tile: a word is two inputs, sixteen rows side by side. What is missing is zero.
TARGET void pack_rows(const Element *x, int64_t num_inputs, int64_t num_rows, int64_t left, uint32_t *packed) {
    const int num_words = std::min<int64_t>(SIDE, left / STEP);
    transpose_words(reinterpret_cast<const uint32_t *>(x), num_inputs / STEP, num_rows, num_words, packed, SIDE);
    std::fill_n(packed + num_words * SIDE, (SIDE - num_words) * SIDE, 0);
}

// Weights of PANEL outputs.
struct Panel {
    const Element *weight;
    int64_t row, tile; // from one output to the next, from one tile of inputs to the next
    alignas(64) float bias[PANEL];
    int num_outputs;
};

// Copies weights [num_outputs][num_inputs] as [depth][PANEL][DEPTH], with zeros behind the last input. Below the last
// output may be anything: nobody stores its sums.
TARGET void copy_weights(const Element *weight, int64_t num_inputs, int num_outputs, Element *copy) {
    for (int64_t left = num_inputs; left > 0; left -= DEPTH, weight += DEPTH, copy += PANEL * DEPTH) {
        const __mmask32 mask = first32(left);
        for (int i = 0; i < num_outputs; ++i)
            _mm512_store_si512(copy + i * DEPTH, _mm512_maskz_loadu_epi16(mask, weight + i * num_inputs));
    }
}

TARGET void make_panel(const Linear<Element> &linear, int64_t first, int64_t num_blocks, Element *copy, Panel &panel) {
    const int64_t num_inputs = linear.num_inputs;
    const int count = std::min<int64_t>(PANEL, linear.num_outputs - first);
    const Element *weight = linear.weight + first * num_inputs;
    panel.num_outputs = count;
    for (int i = 0; i < PANEL; i += SIDE)
        store(panel.bias + i, linear.bias ? load_elements(count - i, linear.bias + first + i) : broadcast(0.0f));
    // Where each row of a tile lies in two cache lines, a copy is read faster, if it is read more than once.
    const bool is_split = num_blocks > 1 && reinterpret_cast<uintptr_t>(weight) % 64;
    if (count < PANEL || num_inputs % DEPTH || is_split) {
        copy_weights(weight, num_inputs, count, copy);
        panel.weight = copy;
        panel.row = DEPTH;
        panel.tile = PANEL * DEPTH;
    } else {
        panel.weight = weight;
        panel.row = num_inputs;
        panel.tile = DEPTH;
    }
}

// Fetches the next panel into L2, some cache lines at a time; 0 lines: weights that are read once, by a single block of
// rows, are fetched a few tiles before.
struct Ahead {
    const char *next, *last;
    int lines; // at a time
};

constexpr int NEAR = 16; // tiles

// What is at the same place NEAR tiles further, in this panel or the next, where `left` tiles remain of this one.
INLINE void fetch_near(const Element *weight, int64_t row_bytes, int64_t left) {
    const char *line = reinterpret_cast<const char *>(weight + NEAR * DEPTH);
    if (left <= NEAR) line += (PANEL - 1) * row_bytes; // beyond the end of a row the next one begins
    for (int i = 0; i < PANEL; ++i, line += row_bytes) _mm_prefetch(line, _MM_HINT_T1);
}

// sums [ROWS][PANEL][SIDE] = panel . ROWS tiles of rows
template <int ROWS>
TARGET void multiply(const Panel &panel, int64_t depth, const uint32_t *x, float *sums, Ahead &ahead) {
    tiles::clear<0>();
    tiles::clear<1>();
    if (ROWS > 1) tiles::clear<2>();
    if (ROWS > 1) tiles::clear<3>();
    const Element *upper = panel.weight, *lower = upper + SIDE * panel.row;
    const int64_t row_bytes = panel.row * sizeof(Element), tile = panel.tile;
    const char *next = ahead.next, *last = ahead.last;
    const int lines = ahead.lines;
    for (; depth > 0; --depth, upper += tile, lower += tile, x += 2 * SIZE) {
        for (int i = 0; i < lines && next < last; ++i, next += 64) _mm_prefetch(next, _MM_HINT_T1);
        if (lines == 0) fetch_near(upper, row_bytes, depth);
        tiles::load<4>(upper, row_bytes);
        tiles::load<6>(x, 64);
        tiles::multiply<0, 4, 6>();
        tiles::load<5>(lower, row_bytes);
        tiles::multiply<1, 5, 6>();
        if (ROWS > 1) {
            tiles::load<7>(x + SIZE, 64);
            tiles::multiply<2, 4, 7>();
            tiles::multiply<3, 5, 7>();
        }
    }
    ahead.next = next;
    tiles::store<0>(sums, 64);
    tiles::store<1>(sums + SIZE, 64);
    if (ROWS > 1) tiles::store<2>(sums + 2 * SIZE, 64);
    if (ROWS > 1) tiles::store<3>(sums + 3 * SIZE, 64);
}

// Sums [PANEL][SIDE] of a tile of rows become outputs: the bias is added, two neighbouring outputs of a row become a
// word, and words change sides.
TARGET void finish_tile(const float *sums, const Panel &panel, int num_rows, Element *out, int64_t stride) {
    alignas(64) static constexpr uint16_t BY_TURNS[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i by_turns = _mm512_load_si512(BY_TURNS);
    __m512i words[SIDE];
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; ++i, sums += 2 * SIDE) {
        const Floats low = add(load(sums), broadcast(panel.bias[2 * i]));
        const Floats high = add(load(sums + SIDE), broadcast(panel.bias[2 * i + 1]));
        words[i] = _mm512_permutexvar_epi16(by_turns, (__m512i)_mm512_cvtne2ps_pbh(high, low)); // low's come first
    }
    transpose(words);
    const __mmask32 mask = first32(panel.num_outputs);
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; ++i)
        if (i < num_rows) _mm512_mask_storeu_epi16(out + i * stride, mask, words[i]);
}

// Sums [2][PANEL][SIDE] of a block that are not finished yet.
struct Block {
    const float *sums;
    const Panel *panel;
    Element *out;
    int num_rows; // 0: there is none
};

INLINE void finish(const Block &block, int64_t stride) {
    for (int row = 0; row < block.num_rows; row += SIDE)
        finish_tile(block.sums + row * PANEL, *block.panel, block.num_rows - row, block.out + row * stride, stride);
}

// `num_panels` panels from output `first` on; packed [num_blocks][depth][2][SIDE][SIDE]. A block is finished when the
// next has been given to the tiles: the CPU does both at the same time.
TARGET void multiply_panels(const Linear<Element> &linear, int64_t first, int64_t num_panels, const uint32_t *packed,
                            int64_t num_rows, Element *out, Element *copy) {
    const int64_t num_inputs = linear.num_inputs, stride = linear.num_outputs, depth = divide_up(num_inputs, DEPTH);
    const int64_t num_blocks = divide_up(num_rows, BLOCK), panel_bytes = PANEL * num_inputs * sizeof(Element);
    alignas(64) float sums[2][2 * PANEL * SIDE];
    Panel panels[2];
    Block last = {};
    for (int64_t i = 0, turn = 0; i < num_panels; ++i, first += PANEL) {
        Panel &panel = panels[i % 2];
        make_panel(linear, first, num_blocks, copy, panel);
        const char *below = reinterpret_cast<const char *>(linear.weight + (first + PANEL) * num_inputs);
        const int lines = num_blocks > 1 ? divide_up(PANEL, num_blocks) : 0;
        Ahead ahead = {below, below + panel_bytes, lines};
        for (int64_t row = 0; row < num_rows; row += BLOCK, ++turn) {
            const int count = std::min<int64_t>(BLOCK, num_rows - row);
            const uint32_t *x = packed + row / BLOCK * depth * 2 * SIZE;
            if (count > SIDE)
                multiply<2>(panel, depth, x, sums[turn % 2], ahead);
            else
                multiply<1>(panel, depth, x, sums[turn % 2], ahead);
            finish(last, stride);
            last = {sums[turn % 2], &panel, out + row * stride + first, count};
        }
    }
    finish(last, stride);
}

// out = x weight^T + bias: x [num_rows][num_inputs], out [num_rows][num_outputs]. Every thread of a parallel region
// calls it; all have finished when it returns.
TARGET void apply(const Linear<Element> &linear, const Element *x, Element *out, int64_t num_rows) {
    if (num_rows == 0) return;
    const int64_t num_inputs = linear.num_inputs, depth = divide_up(num_inputs, DEPTH);
    const int64_t num_tiles = divide_up(num_rows, BLOCK) * depth * 2;
    static thread_local Scratch rows, weights;
    uint32_t *packed;
#pragma omp single copyprivate(packed)
    packed = reinterpret_cast<uint32_t *>(rows.reserve(num_tiles * SIZE * sizeof(uint32_t)));
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
        const int64_t row = (tile / 2 / depth * 2 + tile % 2) * SIDE, first = tile / 2 % depth * DEPTH;
        if (row >= num_rows) continue;
        pack_rows(x + row * num_inputs + first, num_inputs, num_rows - row, num_inputs - first, packed + tile * SIZE);
    }
    Element *copy = reinterpret_cast<Element *>(weights.reserve(depth * PANEL * DEPTH * sizeof(Element)));
    const int64_t num_panels = divide_up(linear.num_outputs, PANEL), num_threads = omp_get_num_threads();
    const tiles::Session session;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < num_threads; ++part) {
        const int64_t first = num_panels * part / num_threads, last = num_panels * (part + 1) / num_threads;
        for (int64_t row = 0; row < num_rows; row += MAX_STRETCH)
            multiply_panels(linear, first * PANEL, last - first, packed + row / BLOCK * depth * 2 * SIZE,
                            std::min(MAX_STRETCH, num_rows - row), out + row * linear.num_outputs, copy);
    }
}

// What a layer is applied to: x [num_rows][num_inputs], its rows `x_stride` numbers apart; out [num_rows][num_outputs].
struct Rows {
    const Element *x;
    int64_t x_stride;
    Element *out;
    int64_t num_rows;
};

// Panels [first, last) of a layer, by one thread.
TARGET void apply_part(const Linear<Element> &linear, const Rows &rows, int64_t first, int64_t last) {
    const int64_t num_inputs = linear.num_inputs, depth = divide_up(num_inputs, DEPTH);
    static thread_local Scratch scratch, weights;
    uint32_t *packed = reinterpret_cast<uint32_t *>(
        scratch.reserve(divide_up(std::min(MAX_STRETCH, rows.num_rows), BLOCK) * depth * 2 * SIZE * sizeof(uint32_t)));
    Element *copy = reinterpret_cast<Element *>(weights.reserve(depth * PANEL * DEPTH * sizeof(Element)));
    const tiles::Session session;
    for (int64_t stretch = 0; stretch < rows.num_rows; stretch += MAX_STRETCH) {
        const int64_t num_rows = std::min(MAX_STRETCH, rows.num_rows - stretch);
        const Element *x = rows.x + stretch * rows.x_stride;
        for (int64_t row = 0; row < num_rows; row += SIDE)
            for (int64_t tile = 0; tile < depth; ++tile)
                pack_rows(x + row * rows.x_stride + tile * DEPTH, rows.x_stride, num_rows - row,
                          num_inputs - tile * DEPTH, packed + (row / BLOCK * depth * 2 + tile * 2 + row / SIDE % 2) * SIZE);
        multiply_panels(linear, first * PANEL, last - first, packed, num_rows,
                        rows.out + stretch * linear.num_outputs, copy);
    }
}

} // namespace

extern "C" void EXPORT(linear)(const Linear<Element> *linear, const Element *x, Element *out, int64_t num_rows) {
#pragma omp parallel
    apply(*linear, x, out, num_rows);
}

} // namespace linear
