// Products of codes in C++ alone; see int8_linear.h.

#pragma once

#include <algorithm>
#include <cstdint>

namespace int8 {
namespace {

using Operand = int8_t;
constexpr int ROWS = 2;
constexpr int num_panels(int64_t /*rows*/) { return 1; }

INLINE Operand take_code(int8_t code) { return code; }

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of J panels.
template <int M, int J>
void multiply(const Operand *x, const int8_t *weights, int64_t panel_bytes, int64_t count,
              const int32_t * /*weight_sums*/, int32_t (&sums)[M][16 * J]) {
    for (auto &row : sums) std::fill_n(row, 16 * J, 0);
    for (; count > 0; count -= 4, x += 4 * M, weights += 64)
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < J; ++j)
                for (int output = 0; output < 16; ++output)
                    for (int i = 0; i < 4; ++i)
                        sums[m][16 * j + output] += x[4 * m + i] * weights[j * panel_bytes + 4 * output + i];
}

INLINE Floats load_sums(const int32_t *sums) {
    float values[16];
    for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(sums[i]);
    return load(values);
}

} // namespace
} // namespace int8

#include "int8_words.h"
