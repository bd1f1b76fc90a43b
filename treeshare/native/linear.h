// A linear layer, for any number of rows.
//
// Columns are cut into panels; a thread packs a panel of weights into words of STEP neighbouring inputs, sixteen
// outputs side by side, and multiplies every row by it. An output is a running sum over its inputs in their
// order, in runs of a fixed length whose sums are added up, so a row's bits do not depend on how many rows there are,
// and no row is padded. The weights themselves stay as they are:
// while a panel is multiplied, the next is fetched, so few rows cost little more than reading the weights once.

#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace linear {
namespace {

constexpr int PANEL = LINEAR_PANEL; // outputs of a panel
constexpr int64_t RUN = LINEAR_RUN; // words that are summed up before they are added to the words before
constexpr int LINES = PANEL / 16;   // cache lines that a panel has for each word
static_assert(STEP * sizeof(Element) == sizeof(uint32_t), "a word holds STEP inputs");

// weight [num_outputs][num_inputs] becomes packed [words][PANEL]; missing outputs count as zero.
TARGET void pack(const Element *weight, int64_t num_inputs, int num_outputs, uint32_t *packed) {
    const int64_t num_words = num_inputs / STEP;
    for (int first = 0; first < PANEL; first += 16) {
        for (int64_t word = 0; word < num_words; word += 16) {
            const uint32_t *source = reinterpret_cast<const uint32_t *>(weight) + first * num_words + word;
            transpose_words(source, num_words, num_outputs - first, std::min<int64_t>(16, num_words - word),
                            packed + word * PANEL + first, PANEL);
        }
    }
}

// out[m] = x[m] . columns + bias for M rows and J vectors of columns; fetches `lines` cache lines a word from `ahead`.
template <int M, int J>
INLINE void multiply(const Operand *x, int64_t x_stride, const uint32_t *packed, int64_t num_words,
                     const Element *bias, int num_outputs, Element *out, int64_t out_stride, const char *ahead,
                     int lines) {
    alignas(64) float totals[M][J][16]; // of the runs before
    for (int64_t first = 0, last; first < num_words; first = last) {
        last = num_words - first > RUN ? first + RUN : num_words;
        Floats sums[M][J];
        clear(sums);
        for (int64_t word = first; word < last; ++word, packed += PANEL) {
            for (int line = 0; line < lines; ++line, ahead += 64) __builtin_prefetch(ahead, 0, 2);
            add_products(sums, x + STEP * word, x_stride, reinterpret_cast<const Element *>(packed));
        }
        const auto &results = complete_sums(sums);
        for (int j = 0; j < J; ++j) {
            const int64_t left = num_outputs - 16 * j;
            const Floats offset = bias ? load_elements(left, bias + 16 * j) : broadcast(0.0f);
            for (int m = 0; m < M; ++m) {
                const Floats total = first > 0 ? add(load(totals[m][j]), results[m][j]) : results[m][j];
                if (last < num_words)
                    store(totals[m][j], total);
                else
                    store_elements(left, out + m * out_stride + 16 * j, add(total, offset));
            }
        }
    }
}

// The same for a whole panel.
template <int M>
TARGET void multiply_panel(const Operand *x, int64_t x_stride, const uint32_t *packed, int64_t num_words,
                           const Element *bias, int num_outputs, Element *out, int64_t out_stride, const char *ahead,
                           int lines) {
    constexpr int J = linear_vectors(M);
    if (16 * linear_vectors(LINEAR_ROWS) == PANEL) // no loop, whose counter would take a register from the one inside
        return multiply<M, J>(x, x_stride, packed, num_words, bias, num_outputs, out, out_stride, ahead, lines);
    for (int column = 0; column < num_outputs; column += 16 * J, lines = 0)
        multiply<M, J>(x, x_stride, packed + column, num_words, bias ? bias + column : nullptr, num_outputs - column,
                       out + column, out_stride, ahead, lines);
}

// So that no template is instantiated for more rows than a register tile has.
constexpr int cap_rows(int rows) { return std::min(rows, LINEAR_ROWS); }

// out = x weight^T + bias: x [num_rows][num_inputs], out [num_rows][num_outputs]. Every thread of a parallel region
// calls it; all have finished when it returns.
TARGET void apply(const Linear<Element> &linear, const Element *x, Element *out, int64_t num_rows) {
    const int64_t num_inputs = linear.num_inputs, num_outputs = linear.num_outputs, num_words = num_inputs / STEP;
    const int64_t num_panels = (num_outputs + PANEL - 1) / PANEL;
    const int64_t num_tiles = (num_rows + LINEAR_ROWS - 1) / LINEAR_ROWS;
    if (num_tiles == 0) return;
    const int64_t share = (LINES + num_tiles - 1) / num_tiles; // lines to fetch during a tile
    static thread_local Scratch scratch;
    char *memory = scratch.reserve(num_words * PANEL * 4 + LINEAR_ROWS * num_inputs * sizeof(Operand));
    uint32_t *packed = reinterpret_cast<uint32_t *>(memory);
    Operand *buffer = reinterpret_cast<Operand *>(memory + num_words * PANEL * 4);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
        const int64_t first = panel * PANEL;
        const int count = std::min<int64_t>(PANEL, num_outputs - first);
        pack(linear.weight + first * num_inputs, num_inputs, count, packed);
        const Element *bias = linear.bias ? linear.bias + first : nullptr;
        const char *ahead = reinterpret_cast<const char *>(linear.weight + (first + PANEL) * num_inputs);
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
            const int64_t row = tile * LINEAR_ROWS, height = std::min<int64_t>(LINEAR_ROWS, num_rows - row);
            const int lines = tile * share < LINES ? share : 0;
            const Operand *source = as_operands(x + row * num_inputs, height * num_inputs, buffer);
            Element *target = out + row * num_outputs + first;
#define TILE(M)                                                                                                        \
    multiply_panel<cap_rows(M)>(source, num_inputs, packed, num_words, bias, count, target, num_outputs, ahead, lines)
            switch (height) {
            case 8: TILE(8); break;
            case 7: TILE(7); break;
            case 6: TILE(6); break;
            case 5: TILE(5); break;
            case 4: TILE(4); break;
            case 3: TILE(3); break;
            case 2: TILE(2); break;
            default: TILE(1);
            }
#undef TILE
            ahead += lines * 64 * num_words;
        }
    }
}

} // namespace

extern "C" void EXPORT(linear)(const Linear<Element> *linear, const Element *x, Element *out, int64_t num_rows) {
#pragma omp parallel
    apply(*linear, x, out, num_rows);
}

} // namespace linear
