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

// total += sum * (row scale * weight scale), for a tile's sums of a group. The scales are at the addresses of those of
// its first row and output.
template <int M, int J>
TARGET void add_scaled(const int32_t (&sums)[M][J * PANEL], int64_t height, const char *row_scales, int64_t stride,
                       const float *scales, float (&totals)[M][J * PANEL]) {
    for (int64_t m = 0; m < height; ++m, row_scales += stride) {
        const Floats row_scale = broadcast(*reinterpret_cast<const float *>(row_scales));
        for (int64_t n = 0; n < J * PANEL; n += PANEL) {
            const Floats scale = mul(row_scale, load(scales + n));
            store(totals[m] + n, add(load(totals[m] + n), mul(load_sums(sums[m] + n), scale)));
        }
    }
}

// A tile, of at most M rows, times J panels from `panel` on.
template <int M, int J>
TARGET void multiply_tile(const Work &work, int64_t tile, int64_t panel) {
    const Int8Linear &linear = work.linear;
    const int64_t first = panel * PANEL, inputs = work.shape.inputs, panel_bytes = work.shape.panel_bytes();
    const int64_t row = work.tiles.first(tile), height = work.tiles.height(tile);
    const int8_t *weights = linear.codes + panel * panel_bytes;
    const Operand *x = work.operands + tile * ROWS * inputs;
    const char *row_scales = codes_of(work.rows, row) + inputs;
    alignas(64) float totals[M][J * PANEL];
    alignas(64) int32_t sums[M][J * PANEL];
    for (int64_t n = 0; n < J * PANEL; n += PANEL) {
        const int64_t left = linear.num_outputs - first - n;
        const Floats bias = linear.bias ? load_first(left, linear.bias + first + n) : broadcast(0.0f);
        for (int64_t m = 0; m < height; ++m) store(totals[m] + n, bias);
    }
    for (int64_t left = inputs, place = first; left > 0; left -= work.shape.group, place += work.shape.outputs) {
        const int64_t count = std::min(work.shape.group, left);
        multiply<M, J>(x, weights, panel_bytes, count, linear.sums + place, sums);
        add_scaled<M, J>(sums, height, row_scales, work.rows.row_stride * sizeof(float), linear.scales + place, totals);
        x += M * count;
        weights += PANEL * count;
        row_scales += sizeof(float);
    }
    for (int64_t m = 0; m < height; ++m)
        for (int64_t n = 0; n < J * PANEL; n += PANEL)
            store_number(work.out, row + m, first + n, linear.num_outputs - first - n, load(totals[m] + n));
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
        const int64_t end = panels * (part + 1) / num_threads;
        for (int64_t stretch = 0; stretch < tiles.count; stretch += STRETCH)
            for (int64_t panel = panels * part / num_threads; panel < end; panel += together)
                for (int64_t tile = stretch; tile < std::min(stretch + STRETCH, tiles.count); ++tile)
                    multiply_rows<ROWS>(work, tile, {panel, std::min(panel + together, end)});
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
