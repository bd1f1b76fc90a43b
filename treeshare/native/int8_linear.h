// A linear layer in codes of 8 bits, for any number of rows; int8.h says what codes stand for.
//
// A group's products are summed up in whole numbers, exactly. Then, in float32 and rounded each time,
//     out = bias + sum[0] * (row scale[0] * weight scale[0]) + sum[1] * (row scale[1] * weight scale[1]) + ...
// from left to right. So all levels give the same bits, and a row's do not depend on how many rows there are.
//
// A level's products (int8_plain.h and others) define
//     Operand                    a row's code as they multiply it, and ROW_COPY, whether that takes a copy of the row
//     ROWS, num_panels(rows)     the register tile: rows, and panels of sixteen outputs for so many
//     Products<M, J>             a tile's sums: `begin`, `add` for four inputs, `floats` to read them
// A thread takes J panels after another and multiplies each by all rows of a stretch, which stay in its cache.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "int8.h"

namespace int8 {
namespace {

constexpr int64_t MAX_STRETCH = 256; // rows

// Rows as operands, and where their scales are.
struct Rows {
    const Operand *codes;
    int64_t stride; // in operands
    const char *scales;
    int64_t scales_stride; // in bytes

    Rows from(int64_t row) const {
        return {codes + row * stride, stride, scales + row * scales_stride, scales_stride};
    }
    float scale(int64_t row, int64_t group) const {
        return reinterpret_cast<const float *>(scales + row * scales_stride)[group];
    }
};

// M rows times J panels, from `panel` on. Not inlined, so that its sums get all registers.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Int8Linear &linear, const Shape &shape, const Rows &rows,
                                               int64_t panel, const Buffer &out, int64_t row) {
    const int64_t first = panel * PANEL, panel_bytes = shape.panel_bytes();
    const int8_t *weights = linear.codes + panel * panel_bytes;
    const Operand *x = rows.codes;
    alignas(64) float totals[M][J * PANEL];
    for (int j = 0; j < J; ++j) {
        const int64_t left = linear.num_outputs - first - j * PANEL;
        const Floats bias = linear.bias ? load_first(left, linear.bias + first + j * PANEL) : broadcast(0.0f);
        for (int m = 0; m < M; ++m) store(totals[m] + j * PANEL, bias);
    }
    for (int64_t group = 0, left = shape.inputs; group < shape.groups; ++group, left -= shape.group) {
        const int64_t of_group = group * shape.outputs + first;
        Products<M, J> products;
        products.begin(linear.sums + of_group);
        for (int64_t i = std::min(shape.group, left); i > 0; i -= WORD, x += WORD, weights += PANEL * WORD)
            products.add(x, rows.stride, weights, panel_bytes);
        for (int m = 0; m < M; ++m) {
            const Floats row_scale = broadcast(rows.scale(m, group));
            for (int j = 0; j < J; ++j) {
                float *total = totals[m] + j * PANEL;
                const Floats scale = mul(row_scale, load(linear.scales + of_group + j * PANEL));
                store(total, add(load(total), mul(products.floats(m, j), scale)));
            }
        }
    }
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < J; ++j)
            store_number(out, row + m, first + j * PANEL, linear.num_outputs - first - j * PANEL,
                         load(totals[m] + j * PANEL));
}

// J panels, or fewer where the layer ends.
template <int M>
TARGET void multiply_panels(const Int8Linear &linear, const Shape &shape, const Rows &rows, int64_t panel, int64_t end,
                            const Buffer &out, int64_t row) {
    constexpr int J = num_panels(M);
    for (; panel + J <= end; panel += J) multiply<M, J>(linear, shape, rows, panel, out, row);
    for (; panel < end; ++panel) multiply<M, 1>(linear, shape, rows, panel, out, row);
}

// All tiles of M rows, then one of what is left.
template <int M>
TARGET int64_t multiply_rows(const Int8Linear &linear, const Shape &shape, const Rows &rows, int64_t panel, int64_t end,
                             const Buffer &out, int64_t row, int64_t last) {
    for (; row + M <= last; row += M)
        multiply_panels<M>(linear, shape, rows.from(row), panel, end, out, row);
    if constexpr (M > 1) return multiply_rows<M - 1>(linear, shape, rows, panel, end, out, row, last);
    return row;
}

// The rows as operands: copies that all threads make and use, or where they are.
TARGET Rows take_rows(const Shape &shape, const Buffer &rows, int64_t num_rows) {
    const char *memory = codes_of(rows, 0);
    const int64_t bytes = rows.row_stride * sizeof(float);
    if (!ROW_COPY) return {reinterpret_cast<const Operand *>(memory), bytes, memory + shape.inputs, bytes};
    static thread_local Scratch scratch;
    Operand *copy;
#pragma omp single copyprivate(copy)
    copy = reinterpret_cast<Operand *>(scratch.reserve(num_rows * shape.inputs * sizeof(Operand)));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
        copy_row(reinterpret_cast<const int8_t *>(memory + row * bytes), shape.inputs, copy + row * shape.inputs);
    return {copy, shape.inputs, memory + shape.inputs, bytes};
}

// Every thread of a parallel region calls it; all have finished when it returns.
TARGET void apply(const Int8Linear &linear, const Buffer &rows, const Buffer &out, int64_t num_rows) {
    if (num_rows == 0) return;
    const Shape shape(linear);
    const Rows taken = take_rows(shape, rows, num_rows);
    const int64_t panels = shape.outputs / PANEL, num_threads = omp_get_num_threads();
    const int64_t together = num_panels(std::min<int64_t>(num_rows, ROWS));
#pragma omp for schedule(static)
    for (int64_t part = 0; part < num_threads; ++part) {
        const int64_t first = panels * part / num_threads, end = panels * (part + 1) / num_threads;
        for (int64_t row = 0; row < num_rows; row += MAX_STRETCH)
            for (int64_t panel = first; panel < end; panel += together)
                multiply_rows<ROWS>(linear, shape, taken, panel, std::min(panel + together, end), out, row,
                                    std::min(row + MAX_STRETCH, num_rows));
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
