// A linear layer in codes of 8 bits, for any number of rows; int8.h says what codes stand for.
//
// A group's products are summed up in whole numbers, exactly. Then, in float32 and rounded each time,
//     out = bias + sum[0] * (row scale[0] * weight scale[0]) + sum[1] * (row scale[1] * weight scale[1]) + ...
// from left to right. So all levels give the same bits, and a row's do not depend on how many rows there are.
//
// Rows are cut into tiles, which are copied once in the order in which they are read. A thread takes some panels of
// weights after others and multiplies them by all tiles of a stretch, which stay in its cache.
//
// A level's products (int8_plain.h and others) define
//     Operand, take_row            a row's code as it is multiplied; copies a row's into its tile
//     ROWS, ROW_STEP, num_panels   a tile's rows at most; it counts as a multiple of ROW_STEP; how many panels, 1, 2
//                                  or 4, are multiplied together by a tile of so many rows
//     multiply<M, J>, load_sums    a group's products of M rows and J panels, summed up; sixteen of the sums as floats
//     Session                      lives while a thread multiplies

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "int8.h"

namespace int8 {
namespace {

constexpr int64_t STRETCH = 256 / ROWS; // tiles

// Tiles are as high as one another, or one row higher.
struct Tiles {
    int64_t num_rows, count;
    explicit Tiles(int64_t num_rows) : num_rows(num_rows), count((num_rows + ROWS - 1) / ROWS) {}
    int64_t first(int64_t tile) const { return num_rows * tile / count; }
    int64_t height(int64_t tile) const { return first(tile + 1) - first(tile); }
};

// One layer's work.
struct Work {
    const Int8Linear &linear;
    const Buffer &rows, &out;
    const Shape shape;
    const Tiles tiles;
    const Operand *operands; // [tiles][ROWS * inputs]
};

// Some panels of weights.
struct Panels {
    int64_t first, last;
};

// A group of a tile's inputs and of some panels' outputs.
struct Part {
    int64_t row, height, output, group;
};

// total += sum * (row scale * weight scale): the total is the bias before the first group, and the result after the
// last.
template <int M, int J>
TARGET void add_scaled(const Work &work, const Part &part, const int32_t (&sums)[M][J * PANEL],
                       float (&totals)[M][J * PANEL]) {
    const Int8Linear &linear = work.linear;
    const bool is_first = part.group == 0, is_last = part.group + 1 == work.shape.groups;
    for (int64_t n = 0; n < J * PANEL; n += PANEL) {
        const int64_t output = part.output + n, left = linear.num_outputs - output;
        const Floats bias = linear.bias ? load_first(left, linear.bias + output) : broadcast(0.0f);
        const Floats scales = load(linear.scales + part.group * work.shape.outputs + output);
        for (int64_t m = 0; m < part.height; ++m) {
            const char *row = codes_of(work.rows, part.row + m) + work.shape.inputs;
            const Floats scale = mul(broadcast(reinterpret_cast<const float *>(row)[part.group]), scales);
            const Floats before = is_first ? bias : load(totals[m] + n);
            const Floats total = add(before, mul(load_sums(sums[m] + n), scale));
            if (is_last)
                store_number(work.out, part.row + m, output, left, total);
            else
                store(totals[m] + n, total);
        }
    }
}

// A tile, of at most M rows, times J panels from `panel` on.
template <int M, int J>
TARGET void multiply_tile(const Work &work, int64_t tile, int64_t panel) {
    const Shape &shape = work.shape;
    const int8_t *weights = work.linear.codes + panel * shape.panel_bytes();
    const Operand *x = work.operands + tile * ROWS * shape.inputs;
    Part part = {work.tiles.first(tile), work.tiles.height(tile), panel * PANEL, 0};
    alignas(64) float totals[M][J * PANEL];
    alignas(64) int32_t sums[M][J * PANEL];
    for (int64_t left = shape.inputs; left > 0; left -= shape.group, ++part.group) {
        const int64_t count = std::min(shape.group, left);
        multiply<M, J>(x, weights, shape.panel_bytes(), count,
                       work.linear.sums + part.group * shape.outputs + part.output, sums);
        add_scaled<M, J>(work, part, sums, totals);
        x += M * count;
        weights += PANEL * count;
    }
}

// J panels after J others, then what is left in fewer.
template <int M, int J>
TARGET void multiply_panels(const Work &work, int64_t tile, Panels panels) {
    for (; panels.first + J <= panels.last; panels.first += J) multiply_tile<M, J>(work, tile, panels.first);
    if constexpr (J > 1) multiply_panels<M, J / 2>(work, tile, panels);
}

// The smallest M that a tile fits into.
template <int M>
TARGET void multiply_rows(const Work &work, int64_t tile, const Panels &panels) {
    if constexpr (M > ROW_STEP) {
        if (work.tiles.height(tile) <= M - ROW_STEP) return multiply_rows<M - ROW_STEP>(work, tile, panels);
    }
    multiply_panels<M, num_panels(M)>(work, tile, panels);
}

// All threads make the tiles together.
TARGET const Operand *take_rows(const Buffer &rows, const Shape &shape, const Tiles &tiles) {
    static thread_local Scratch scratch;
    Operand *operands;
#pragma omp single copyprivate(operands)
    operands = reinterpret_cast<Operand *>(scratch.reserve(tiles.count * ROWS * shape.inputs * sizeof(Operand)));
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
        const int64_t height = tiles.height(tile), steps = (height + ROW_STEP - 1) / ROW_STEP;
        for (int64_t m = 0; m < height; ++m)
            take_row(reinterpret_cast<const int8_t *>(codes_of(rows, tiles.first(tile) + m)), shape.inputs, m,
                     steps * ROW_STEP, operands + tile * ROWS * shape.inputs);
    }
    return operands;
}

// Fetches the `part`-th of `parts` parts of some panels.
INLINE void fetch(const Work &work, const Panels &panels, int64_t part, int64_t parts) {
    const int64_t bytes = work.shape.panel_bytes(), size = (panels.last - panels.first) * bytes;
    const int8_t *codes = work.linear.codes + panels.first * bytes;
    for (int64_t i = size * part / parts / 64 * 64; i < size * (part + 1) / parts; i += 64)
        __builtin_prefetch(codes + i, 0, 2);
}

// Some panels times the tiles of a stretch. Meanwhile the next are fetched from memory, a part with each tile.
TARGET void multiply_stretch(const Work &work, const Panels &panels, const Panels &next, int64_t first, int64_t last) {
    for (int64_t tile = first; tile < last; ++tile) {
        fetch(work, next, tile - first, last - first);
        multiply_rows<ROWS>(work, tile, panels);
    }
}

// Every thread of a parallel region calls it; all have finished when it returns.
TARGET void apply(const Int8Linear &linear, const Buffer &rows, const Buffer &out, int64_t num_rows) {
    if (num_rows == 0) return;
    const Shape shape(linear);
    const Tiles tiles(num_rows);
    const Work work = {linear, rows, out, shape, tiles, take_rows(rows, shape, tiles)};
    const int64_t panels = shape.outputs / PANEL, num_threads = omp_get_num_threads();
    const int64_t together = num_panels(tiles.height(tiles.count - 1));
    const Session session;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < num_threads; ++part) {
        const int64_t first = panels * part / num_threads, end = panels * (part + 1) / num_threads;
        const auto some = [&](int64_t panel) { return Panels{std::min(panel, end), std::min(panel + together, end)}; };
        for (int64_t tile = 0; tile < tiles.count; tile += STRETCH)
            for (int64_t panel = first; panel < end; panel += together)
                multiply_stretch(work, some(panel), some(panel + together), tile, std::min(tile + STRETCH, tiles.count));
    }
}

} // namespace

extern "C" {

void LEVEL_EXPORT(apply_int8)(const Int8Linear *linear, const Buffer *rows, const Buffer *out, int64_t num_rows) {
    apply(*linear, *rows, *out, num_rows);
}

void LEVEL_EXPORT(linear_int8)(const Int8Linear *linear, const Buffer *rows, const Buffer *out, int64_t num_rows) {
#pragma omp parallel
    apply(*linear, *rows, *out, num_rows);
}
}

} // namespace int8
