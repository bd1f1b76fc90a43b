// Products of codes in C++ alone; see int8_linear.h.

#pragma once

#include <cstdint>

#include "int8.h"

namespace int8 {
namespace {

using Operand = int8_t;
constexpr bool ROW_COPY = false;
constexpr int ROWS = 2;
constexpr int num_panels(int64_t /*rows*/) { return 1; }

inline void copy_row(const int8_t *, int64_t, Operand *) {}

template <int M, int J>
struct Products {
    int32_t sums[M][J][16];

    MEMBER void begin(const int32_t * /*weight_sums*/) {
        for (auto &row : sums)
            for (auto &panel : row)
                for (int32_t &sum : panel) sum = 0;
    }
    // Four inputs of M rows, `stride` apart, times those of the sixteen outputs of J panels.
    MEMBER void add(const int8_t *x, int64_t stride, const int8_t *weights, int64_t panel_bytes) {
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < J; ++j)
                for (int output = 0; output < 16; ++output)
                    for (int i = 0; i < 4; ++i)
                        sums[m][j][output] += x[m * stride + i] * weights[j * panel_bytes + 4 * output + i];
    }
    MEMBER Floats floats(int m, int j) const {
        float values[16];
        for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(sums[m][j][i]);
        return load(values);
    }
};

} // namespace
} // namespace int8
