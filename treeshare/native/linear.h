// A linear layer, for any number of rows.
//
// Columns are cut into panels and inputs into chunks; a thread packs a chunk of a panel, sixteen outputs side by side,
// and multiplies every row by it. An output is a running sum over its inputs in their order, which waits in memory
// between chunks (in float32 it is one of runs of a fixed length, whose sums are added up). So a row's bits do not
// depend on how many rows there are, and no row is padded. The weights themselves stay as they are: while a chunk is
// multiplied, the next is fetched, so few rows cost little more than reading the weights once.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common.h"

namespace linear {
namespace {

constexpr int PANEL = LINEAR_PANEL;                  // outputs of a panel
constexpr int STEPS = STEP * sizeof(Element) < 4 ? 4 / (STEP * sizeof(Element)) : 1; // of add_products, for a word
constexpr int WORD = STEP * STEPS;                   // inputs of a word: 32 bits or, where a step needs them, 64
constexpr int BYTES = WORD * sizeof(Element);        // of a word of weights
constexpr int LINES = PANEL * BYTES / 64;            // cache lines that a panel's weights have for each word of a row
constexpr int COLUMN = PANEL * STEP;                 // numbers that a panel has for a step
constexpr bool HAS_RUNS = LINEAR_RUN < INT64_MAX;    // or one running sum
constexpr int64_t MAX_CHUNK = HAS_RUNS ? LINEAR_RUN : 1536 / BYTES; // words: packed, they take a part of L2
constexpr int64_t SMALL_CHUNK = HAS_RUNS ? LINEAR_RUN : 256 / BYTES; // they stay in L1, where each is used by one tile only
constexpr int NEAR = 8; // steps ahead that packed weights are fetched from L2
constexpr int64_t FEW_TILES = 2, GROUP_BYTES = 448 << 10; // of packed panels: a part of L2
constexpr bool COPIES = !std::is_same<Operand, Element>::value; // rows of x, to a buffer
constexpr bool HAS_TAILS = BYTES > 4; // inputs are even in number: they may end within a word
constexpr int64_t BUFFER_STRIDE = MAX_CHUNK * WORD + 16; // rows begin in different sets of L1
static_assert(BYTES == 4 || (BYTES == 8 && STEPS == 1), "a word holds the inputs of whole steps");

// Words [first, last) of a layer's inputs.
struct Chunk {
    int64_t first, last;
    bool begins, ends; // the sums
    int64_t size() const { return last - first; }
};

constexpr int64_t per(int64_t number, int64_t size) { return (number + size - 1) / size; }
constexpr int64_t round_up(int64_t words) { return per(words, 16) * 16; }

// Lines of weights that are packed next, fetched one after the other from rows that lie `stride` bytes apart.
struct Ahead {
    const char *row;
    int64_t stride, lines, line; // lines of a row, and which is next
    int64_t rate, due;           // LINE stands for one: to fetch with each step, and what has come together
    static constexpr int64_t LINE = 1 << 16;
};

INLINE void fetch_due(Ahead &ahead) {
    for (ahead.due += ahead.rate; ahead.due >= Ahead::LINE; ahead.due -= Ahead::LINE) {
        __builtin_prefetch(ahead.row + 64 * ahead.line, 0, 2);
        if (++ahead.line < ahead.lines) continue;
        ahead.line = 0;
        ahead.row += ahead.stride;
    }
}

// Inputs of `num_outputs` rows of weights, `stride` numbers apart, become packed [words][STEPS][PANEL][STEP]; missing
// outputs count as zero, and so do inputs that the last word lacks.
TARGET void pack(const Element *weight, int64_t stride, int64_t num_inputs, int num_outputs, Packed *packed) {
    const int64_t num_words = num_inputs / WORD, left = HAS_TAILS ? num_inputs % WORD : 0;
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
};

// totals[m] += x[m] . columns for M rows and J vectors of columns; the last chunk's sums go to out. Not inlined: a
// compiler would move constants out of the loops around it, into registers that the sums need.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Tile &tile, const Packed *packed, const Chunk &chunk, int column,
                                               bool fetches, Ahead &shared_ahead) {
    Ahead ahead = shared_ahead; // in registers
    if (!fetches) ahead.rate = 0;
    float *totals = tile.totals + column;
    const Operand *x = tile.x;
    const int64_t x_stride = COPIES ? BUFFER_STRIDE : tile.x_stride; // a constant takes no registers
    Floats sums[M][J];
    clear(sums);
    if (!HAS_RUNS && !chunk.begins) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
            for (int j = 0; j < J; ++j) sums[m][j] = load(totals + m * PANEL + 16 * j);
    }
    packed += column * STEP;
    for (const Packed *end = packed + chunk.size() * STEPS * COLUMN; packed < end; packed += COLUMN, x += STEP) {
        fetch_due(ahead);
        for (int j = 0; j < J; ++j) __builtin_prefetch(packed + NEAR * COLUMN + 16 * j * STEP, 0, 3);
        add_products(sums, x, x_stride, packed);
    }
    if (fetches) shared_ahead = ahead;
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
TARGET void multiply_panel(const Tile &tile, const Packed *packed, const Chunk &chunk, Ahead &ahead) {
    constexpr int J = linear_vectors(M);
    for (int column = 0; column < tile.num_outputs; column += 16 * J)
        multiply<M, J>(tile, packed, chunk, column, column == 0, ahead);
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
TARGET const Operand *take_operands(const Element *x, int64_t stride, int num_rows, int64_t count, Operand *buffer) {
    const int64_t left = HAS_TAILS ? count % WORD : 0;
    if (!COPIES && left == 0) return as_operands(x, count, buffer);
    for (int m = 0; m < num_rows; ++m, buffer += BUFFER_STRIDE) {
        copy_operands(x + m * stride, count, buffer);
        if (left) std::fill_n(buffer + count, WORD - left, Operand(0));
    }
    return buffer - num_rows * BUFFER_STRIDE;
}

// How a layer's work is cut.
struct Cut {
    int64_t num_tiles, chunk; // words of all chunks but the last
    int group;                // panels that are packed together, so that rows are copied once for all of them
};

inline Cut cut(int64_t num_words, int64_t num_panels, int64_t num_rows, int64_t num_threads) {
    const int64_t num_tiles = (num_rows + LINEAR_ROWS - 1) / LINEAR_ROWS;
    if (HAS_RUNS || num_tiles <= FEW_TILES) return {num_tiles, std::min(SMALL_CHUNK, round_up(num_words)), 1};
    const int64_t num_chunks = per(num_words, MAX_CHUNK);
    const int64_t chunk = round_up(per(num_words, num_chunks));
    const auto num_of_thread = [&](int64_t group) { return per(per(num_panels, group), num_threads) * group; };
    int group = COPIES ? std::max<int64_t>(1, GROUP_BYTES / (chunk * STEPS * COLUMN * sizeof(Packed))) : 1;
    while (group > 1 && num_of_thread(group) > num_of_thread(1)) --group;
    return {num_tiles, chunk, group};
}

// A thread's memory.
struct Work {
    Packed *packed;    // [group][chunk][STEPS][PANEL][STEP]
    Operand *operands; // [LINEAR_ROWS][BUFFER_STRIDE]
    float *totals;     // [group][rows][PANEL]
    int64_t panel_size;

    Work(Scratch &scratch, const Cut &cut, int64_t num_rows, bool has_totals)
        : panel_size(cut.chunk * STEPS * COLUMN) {
        const int64_t packed_size = cut.group * panel_size * sizeof(Packed);
        const int64_t operands_size = COPIES || HAS_TAILS ? LINEAR_ROWS * BUFFER_STRIDE * sizeof(Operand) : 0;
        char *memory = scratch.reserve(packed_size + operands_size + (has_totals ? cut.group * num_rows * PANEL * 4 : 0));
        packed = reinterpret_cast<Packed *>(memory);
        operands = reinterpret_cast<Operand *>(memory + packed_size);
        totals = reinterpret_cast<float *>(memory + packed_size + operands_size);
    }
};

// What a layer is applied to: x [num_rows][num_inputs], its rows `x_stride` numbers apart; out [num_rows][num_outputs].
struct Rows {
    const Element *x;
    int64_t x_stride;
    Element *out;
    int64_t num_rows;
};

// A chunk of some panels, from output `first` on, for all rows.
TARGET void apply_chunk(const Linear<Element> &linear, const Rows &rows, const Cut &cut, const Work &work,
                        int64_t first, const Chunk &chunk) {
    const int64_t num_inputs = linear.num_inputs, num_outputs = linear.num_outputs, last = first + cut.group * PANEL;
    const int64_t num_rows = rows.num_rows;
    const auto weights = [&](int64_t output, int64_t word) {
        return linear.weight + output * num_inputs + word * WORD;
    };
    const int64_t count = std::min(chunk.last * WORD, num_inputs) - chunk.first * WORD;
    for (int64_t output = first, place = 0; output < std::min(last, num_outputs); output += PANEL, ++place)
        pack(weights(output, chunk.first), num_inputs, count, std::min<int64_t>(PANEL, num_outputs - output),
             work.packed + place * work.panel_size);
    Ahead ahead = {reinterpret_cast<const char *>(chunk.ends ? weights(last, 0) : weights(first, chunk.last)),
                   int64_t(num_inputs * sizeof(Element)), per(chunk.size() * BYTES, 64), 0, Ahead::LINE * LINES / (cut.num_tiles * STEPS), 0};
    for (int64_t row = 0; row < num_rows; row += LINEAR_ROWS) {
        const int height = std::min<int64_t>(LINEAR_ROWS, num_rows - row);
        const Operand *operands =
            take_operands(rows.x + row * rows.x_stride + chunk.first * WORD, rows.x_stride, height, count, work.operands);
        for (int64_t output = first, place = 0; output < std::min(last, num_outputs); output += PANEL, ++place) {
            const Tile tile = {operands,
                               HAS_TAILS && operands == work.operands ? BUFFER_STRIDE : rows.x_stride,
                               work.totals + (place * num_rows + row) * PANEL,
                               linear.bias ? linear.bias + output : nullptr,
                               int(std::min<int64_t>(PANEL, num_outputs - output)),
                               rows.out + row * num_outputs + output,
                               num_outputs};
            multiply_rows(height, tile, work.packed + place * work.panel_size, chunk, ahead);
        }
    }
}

// Panels [first, last), no more than are packed together, for all inputs.
TARGET void apply_group(const Linear<Element> &linear, const Rows &rows, Cut cut, const Work &work, int64_t first,
                        int64_t last) {
    const int64_t num_words = per(linear.num_inputs, WORD);
    cut.group = last - first;
    for (int64_t word = 0; word < num_words; word += cut.chunk) {
        const int64_t end = std::min(word + cut.chunk, num_words);
        apply_chunk(linear, rows, cut, work, first * PANEL, {word, end, word == 0, end == num_words});
    }
}

// out = x weight^T + bias: x [num_rows][num_inputs], out [num_rows][num_outputs]. Every thread of a parallel region
// calls it; all have finished when it returns.
TARGET void apply(const Linear<Element> &linear, const Element *x, Element *out, int64_t num_rows) {
    if (num_rows == 0) return;
    const int64_t num_words = per(linear.num_inputs, WORD), num_panels = per(linear.num_outputs, PANEL);
    const Cut cut = linear::cut(num_words, num_panels, num_rows, omp_get_num_threads());
    const Rows rows = {x, linear.num_inputs, out, num_rows};
    static thread_local Scratch scratch;
    const Work work(scratch, cut, num_rows, num_words > cut.chunk);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < num_panels; panel += cut.group)
        apply_group(linear, rows, cut, work, panel, std::min(panel + cut.group, num_panels));
}

// Panels [first, last) of a layer, by one thread.
TARGET void apply_part(const Linear<Element> &linear, const Rows &rows, int64_t first, int64_t last) {
    const int64_t num_words = per(linear.num_inputs, WORD);
    const Cut cut = linear::cut(num_words, last - first, rows.num_rows, 1);
    static thread_local Scratch scratch;
    const Work work(scratch, cut, rows.num_rows, num_words > cut.chunk);
    for (int64_t panel = first; panel < last; panel += cut.group)
        apply_group(linear, rows, cut, work, panel, std::min(panel + cut.group, last));
}

} // namespace

extern "C" void EXPORT(linear)(const Linear<Element> *linear, const Element *x, Element *out, int64_t num_rows) {
#pragma omp parallel
    apply(*linear, x, out, num_rows);
}

} // namespace linear
