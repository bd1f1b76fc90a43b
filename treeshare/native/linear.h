// A linear layer, for any number of rows.
//
// Columns are cut into panels and inputs into chunks; a thread packs a chunk of a panel, sixteen outputs side by side,
// and multiplies every row by it. An output is a running sum over its inputs in their order, which waits in memory
// between chunks (in float32 it is one of runs of a fixed length, whose sums are added up). So a row's bits do not
// depend on how many rows there are, and no row is padded. The weights themselves stay as they are: while a chunk is
// multiplied, the next is fetched, so few rows cost little more than reading the weights once.

#pragma once

#include <algorithm>
#include <cstdint>

#include "common.h"

namespace linear {
namespace {

constexpr int PANEL = LINEAR_PANEL;                  // outputs of a panel
constexpr int STEPS = STEP * sizeof(Element) < 4 ? 4 / (STEP * sizeof(Element)) : 1; // of add_products, for a word
constexpr int WORD = STEP * STEPS;                   // inputs of a word, which has 32 bits or, where a step needs it, more
constexpr int BYTES = WORD * sizeof(Element);        // of a word of weights
constexpr int LINES = PANEL * BYTES / 64;            // cache lines that a panel's weights have for each word of a row
constexpr int COLUMN = PANEL * STEP;                 // numbers that a panel has for a step
constexpr bool HAS_RUNS = LINEAR_RUN < INT64_MAX;    // or one running sum
constexpr int64_t MAX_CHUNK = HAS_RUNS ? LINEAR_RUN : 1536 / BYTES; // words: packed, they take a part of L2
constexpr int64_t SMALL_CHUNK = HAS_RUNS ? LINEAR_RUN : 256 / BYTES; // they stay in L1, where each is used by one tile only
static_assert(BYTES == 4 || (BYTES == 8 && STEPS == 1), "a word holds the inputs of whole steps");

// Words [first, last) of a layer's inputs.
struct Chunk {
    int64_t first, last;
    bool begins, ends; // the sums
    int64_t size() const { return last - first; }
};

// Words of all chunks but the last, of `num_words` for `num_tiles` tiles of rows.
inline int64_t chunk_size(int64_t num_words, int64_t num_tiles) {
    if (HAS_RUNS || num_tiles == 1) return SMALL_CHUNK;
    const int64_t num_chunks = (num_words + MAX_CHUNK - 1) / MAX_CHUNK, size = (num_words + num_chunks - 1) / num_chunks;
    return (size + 15) / 16 * 16;
}

// Lines of weights that are packed next, fetched one after the other from rows that lie `stride` bytes apart.
struct Ahead {
    const char *row;
    int64_t stride, lines, line; // lines of a row, and which is next
};

INLINE void fetch_line(Ahead &ahead) {
    __builtin_prefetch(ahead.row + 64 * ahead.line, 0, 2);
    if (++ahead.line < ahead.lines) return;
    ahead.line = 0;
    ahead.row += ahead.stride;
}

// Inputs of `num_outputs` rows of weights, `stride` numbers apart, become packed [words][STEPS][PANEL][STEP]; missing
// outputs count as zero, and so do those that the last word lacks.
TARGET void pack(const Element *weight, int64_t stride, int64_t num_inputs, int num_outputs, Packed *packed) {
    const int64_t num_words = num_inputs / WORD, left = BYTES > 4 ? num_inputs % WORD : 0;
    for (int first = 0; first < PANEL; first += 16) {
        const Element *rows = weight + first * stride;
        for (int64_t word = 0; word < num_words; word += 16)
            pack_words(rows + word * WORD, stride, num_outputs - first, std::min<int64_t>(16, num_words - word),
                       packed + word * STEPS * COLUMN + first * STEP, COLUMN);
        if (left == 0) continue;
        Element last[16 * WORD] = {0};
        for (int row = 0; row < std::min(16, num_outputs - first); ++row)
            std::copy_n(rows + row * stride + num_words * WORD, left, last + row * WORD);
        pack_words(last, WORD, 16, 1, packed + num_words * STEPS * COLUMN + first * STEP, COLUMN);
    }
}

// A tile of rows with all that its outputs need beside the panel.
struct Tile {
    const Operand *x;
    int64_t x_stride;
    float *totals; // [rows][PANEL]: of the chunks before
    const Element *bias; // or null
    int num_outputs;
    Element *out;
    int64_t out_stride;
    int lines; // to fetch with each word
};

// totals[m] += x[m] . columns for M rows and J vectors of columns; the last chunk's sums go to out.
template <int M, int J>
INLINE void multiply(const Tile &tile, const Packed *packed, const Chunk &chunk, int column, Ahead &ahead) {
    float *totals = tile.totals + column;
    const Operand *x = tile.x;
    const int64_t x_stride = tile.x_stride;
    const int lines = tile.lines;
    Floats sums[M][J];
    clear(sums);
    if (!HAS_RUNS && !chunk.begins) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int j = 0; j < J; ++j) sums[m][j] = load(totals + m * PANEL + 16 * j);
    }
    packed += column * STEP;
    for (int64_t word = 0; word < chunk.size(); ++word) {
        for (int line = 0; line < lines; ++line) fetch_line(ahead);
#pragma GCC unroll 2
        for (int step = 0; step < STEPS; ++step, packed += COLUMN, x += STEP) add_products(sums, x, x_stride, packed);
    }
    if (!HAS_RUNS && !chunk.ends) { // they go on as they are, whatever that is before they are complete
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int j = 0; j < J; ++j) store(totals + m * PANEL + 16 * j, sums[m][j]);
        return;
    }
    const auto &results = complete_sums(sums);
    for (int j = 0; j < J; ++j) {
        const int first = column + 16 * j, left = tile.num_outputs - first;
        const Floats offset = tile.bias && chunk.ends ? load_elements(left, tile.bias + first) : broadcast(0.0f);
        for (int m = 0; m < M; ++m) {
            float *place = totals + m * PANEL + 16 * j;
            const Floats total = HAS_RUNS && !chunk.begins ? add(load(place), results[m][j]) : results[m][j];
            if (chunk.ends)
                store_elements(left, tile.out + m * tile.out_stride + first, add(total, offset));
            else
                store(place, total);
        }
    }
}

// The same for a whole panel.
template <int M>
TARGET void multiply_panel(Tile tile, const Packed *packed, const Chunk &chunk, Ahead &ahead) {
    constexpr int J = linear_vectors(M);
    for (int column = 0; column < tile.num_outputs; column += 16 * J, tile.lines = 0)
        multiply<M, J>(tile, packed, chunk, column, ahead);
}

// So that no template is instantiated for more rows than a register tile has.
constexpr int cap_rows(int rows) { return std::min(rows, LINEAR_ROWS); }

TARGET void multiply_rows(int num_rows, const Tile &tile, const Packed *packed, const Chunk &chunk, Ahead &ahead) {
    switch (num_rows) {
    case 8: return multiply_panel<cap_rows(8)>(tile, packed, chunk, ahead);
    case 7: return multiply_panel<cap_rows(7)>(tile, packed, chunk, ahead);
    case 6: return multiply_panel<cap_rows(6)>(tile, packed, chunk, ahead);
    case 5: return multiply_panel<cap_rows(5)>(tile, packed, chunk, ahead);
    case 4: return multiply_panel<cap_rows(4)>(tile, packed, chunk, ahead);
    case 3: return multiply_panel<cap_rows(3)>(tile, packed, chunk, ahead);
    case 2: return multiply_panel<cap_rows(2)>(tile, packed, chunk, ahead);
    default: return multiply_panel<1>(tile, packed, chunk, ahead);
    }
}

// A chunk of a tile's rows as operands: where they are, or in `buffer`, where zeros fill the last word.
TARGET void take_operands(Tile &tile, const Element *x, int64_t stride, int num_rows, int64_t num_inputs,
                          Operand *buffer) {
    const int64_t left = BYTES > 4 ? num_inputs % WORD : 0, count = left ? num_inputs - left + WORD : num_inputs;
    tile.x = left ? buffer : as_operands(x, count, buffer);
    tile.x_stride = tile.x == buffer ? count : stride;
    if (tile.x != buffer) return;
    for (int m = left ? 0 : 1; m < num_rows; ++m) {
        copy_operands(x + m * stride, num_inputs, buffer + m * count);
        std::fill_n(buffer + m * count + num_inputs, count - num_inputs, Operand(0));
    }
}

// A thread's memory.
struct Work {
    Packed *packed;
    Operand *operands;
    float *totals;
    Work(Scratch &scratch, int64_t chunk, int64_t num_rows, bool has_totals) {
        const int64_t packed_size = chunk * STEPS * COLUMN * sizeof(Packed);
        const int64_t operands_size = (LINEAR_ROWS * chunk * WORD * sizeof(Operand) + 63) / 64 * 64;
        char *memory = scratch.reserve(packed_size + operands_size + (has_totals ? num_rows * PANEL * 4 : 0));
        packed = reinterpret_cast<Packed *>(memory);
        operands = reinterpret_cast<Operand *>(memory + packed_size);
        totals = reinterpret_cast<float *>(memory + packed_size + operands_size);
    }
};

// out = x weight^T + bias: x [num_rows][num_inputs], out [num_rows][num_outputs]. Every thread of a parallel region
// calls it; all have finished when it returns.
TARGET void apply(const Linear<Element> &linear, const Element *x, Element *out, int64_t num_rows) {
    const int64_t num_inputs = linear.num_inputs, num_outputs = linear.num_outputs;
    const int64_t num_words = (num_inputs + WORD - 1) / WORD, num_panels = (num_outputs + PANEL - 1) / PANEL;
    const int64_t num_tiles = (num_rows + LINEAR_ROWS - 1) / LINEAR_ROWS;
    if (num_tiles == 0) return;
    const int64_t share = (LINES + num_tiles - 1) / num_tiles; // lines to fetch with a tile's words
    const int64_t size = std::min(chunk_size(num_words, num_tiles), (num_words + 15) / 16 * 16);
    static thread_local Scratch scratch;
    const Work work(scratch, size, num_rows, num_words > size);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
        const int64_t first = panel * PANEL;
        const int count = std::min<int64_t>(PANEL, num_outputs - first);
        for (int64_t word = 0; word < num_words; word += size) {
            const Chunk chunk = {word, std::min(word + size, num_words), word == 0, word + size >= num_words};
            const int64_t used = std::min(chunk.last * WORD, num_inputs) - word * WORD;
            pack(linear.weight + first * num_inputs + word * WORD, num_inputs, used, count, work.packed);
            const Element *next = linear.weight + (chunk.ends ? (first + PANEL) * num_inputs
                                                              : first * num_inputs + chunk.last * WORD);
            Ahead ahead = {reinterpret_cast<const char *>(next), int64_t(num_inputs * sizeof(Element)), (chunk.size() * BYTES + 63) / 64, 0};
            for (int64_t tile = 0; tile < num_tiles; ++tile) {
                const int64_t row = tile * LINEAR_ROWS;
                const int height = std::min<int64_t>(LINEAR_ROWS, num_rows - row);
                Tile rows = {nullptr, 0, work.totals + row * PANEL, linear.bias ? linear.bias + first : nullptr, count,
                             out + row * num_outputs + first, num_outputs,
                             int(tile * share < LINES ? share : 0)};
                take_operands(rows, x + row * num_inputs + word * WORD, num_inputs, height, used, work.operands);
                multiply_rows(height, rows, work.packed, chunk, ahead);
            }
        }
    }
}

} // namespace

extern "C" void EXPORT(linear)(const Linear<Element> *linear, const Element *x, Element *out, int64_t num_rows) {
#pragma omp parallel
    apply(*linear, x, out, num_rows);
}

} // namespace linear
