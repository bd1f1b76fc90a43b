// A layer's weights in codes of 8 bits: how they come into its memory, and rows of a table out of it. See int8.h.

#pragma once

#include <cstdint>
#include <cstring>

#include "int8.h"

namespace int8 {
namespace {

// Every thread of a parallel region calls the functions here; all have finished when they return.
TARGET void quantize_rows(const Int8Linear &linear, const Buffer &x, const Buffer &rows, int64_t num_rows) {
    const Shape shape(linear);
    float *numbers = numbers_of(shape);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
        for (int64_t i = 0; i < shape.inputs; i += 16)
            store(numbers + i, load_number(x, row, i, linear.num_inputs - i));
        quantize(linear, shape, numbers, codes_of(rows, row));
    }
}

// Where an output's first word is; the next are PANEL words apart.
inline int8_t *first_word(const Int8Linear &linear, const Shape &shape, int64_t output) {
    return linear.codes + output / PANEL * shape.panel_bytes() + output % PANEL * WORD;
}

// Output `output` gets a row's codes and scales, or zeros where there is none.
TARGET void pack_row(const Int8Linear &linear, const Shape &shape, int64_t output, const char *row) {
    const int8_t *codes = reinterpret_cast<const int8_t *>(row);
    const float *scales = row ? reinterpret_cast<const float *>(row + shape.inputs) : nullptr;
    int8_t *word = first_word(linear, shape, output);
    for (int64_t first = 0, group = 0; first < shape.inputs; first += shape.group, ++group) {
        int32_t sum = 0;
        for (int64_t i = first; i < std::min(first + shape.group, shape.inputs); i += WORD, word += PANEL * WORD) {
            for (int64_t k = 0; k < WORD; ++k) sum += word[k] = row ? codes[i + k] : 0;
        }
        linear.scales[group * shape.outputs + output] = row ? scales[group] : 0.0f;
        linear.sums[group * shape.outputs + output] = sum;
    }
}

// Rows become outputs [first, first + num_rows); after the last output the panel is filled up with zeros.
TARGET void pack(const Int8Linear &linear, const Buffer &rows, int64_t first, int64_t num_rows) {
    const Shape shape(linear);
    const int64_t end = first + num_rows, last = end == linear.num_outputs ? shape.outputs : end;
#pragma omp for schedule(static)
    for (int64_t output = first; output < last; ++output)
        pack_row(linear, shape, output, output < end ? codes_of(rows, output - first) : nullptr);
}

TARGET void lookup(const Int8Linear &table, const int64_t *ids, const Buffer &out, int64_t num_rows) {
    const Shape shape(table);
    float *numbers = numbers_of(shape);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
        const int8_t *word = first_word(table, shape, ids[row]);
        for (int64_t i = 0; i < shape.inputs; i += WORD, word += PANEL * WORD) {
            const float scale = table.scales[i / shape.group * shape.outputs + ids[row]];
            for (int64_t k = 0; k < WORD; ++k) numbers[i + k] = word[k] * scale;
        }
        transform(numbers, shape.inputs, table.transform);
        for (int64_t i = 0; i < table.num_inputs; i += 16)
            store_number(out, row, i, table.num_inputs - i, load(numbers + i));
    }
}

} // namespace

extern "C" {

void LEVEL_EXPORT(quantize_rows)(const Int8Linear *linear, const Buffer *x, const Buffer *rows, int64_t num_rows) {
#pragma omp parallel
    quantize_rows(*linear, *x, *rows, num_rows);
}

void LEVEL_EXPORT(pack_int8)(const Int8Linear *linear, const Buffer *rows, int64_t first, int64_t num_rows) {
#pragma omp parallel
    pack(*linear, *rows, first, num_rows);
}

void LEVEL_EXPORT(lookup_int8)(const Int8Linear *table, const int64_t *ids, const Buffer *out, int64_t num_rows) {
#pragma omp parallel
    lookup(*table, ids, *out, num_rows);
}
}

} // namespace int8
