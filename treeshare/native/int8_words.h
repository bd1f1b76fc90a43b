// Tiles of rows for products in vectors: the same four inputs of a tile's rows are side by side.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

constexpr int ROW_STEP = 1;

struct Session {};

// Row m of a tile; take_code makes an operand of a code.
INLINE void take_row(const int8_t *codes, int64_t inputs, int64_t m, int64_t height, Operand *tile) {
    for (tile += 4 * m; inputs > 0; inputs -= 4, codes += 4, tile += 4 * height)
        for (int i = 0; i < 4; ++i) tile[i] = take_code(codes[i]);
}

} // namespace
} // namespace int8
