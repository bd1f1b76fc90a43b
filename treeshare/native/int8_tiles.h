// Products of codes on tiles: sixteen rows of 64 codes times 64 codes of sixteen outputs, whose layout in memory is a
// tile's. Sums of 32 bits are exact.

#pragma once

#include <cstdint>
#include <cstring>

namespace int8 {
namespace {

using Operand = int8_t;
using tiles::Session;
constexpr int SIDE = 16, BYTES = 64, TILE = SIDE * BYTES;
constexpr int ROWS = 2 * SIDE, ROW_STEP = SIDE;
constexpr int num_panels(int64_t /*rows*/) { return 2; }

// Row m of tiles that follow one another: of the same 64 inputs, as many as the rows need. Rows that are not there
// multiply to sums that nobody reads.
INLINE void take_row(const int8_t *codes, int64_t inputs, int64_t m, int64_t height, Operand *tile) {
    for (tile += m * BYTES; inputs > 0; inputs -= BYTES, codes += BYTES, tile += height * BYTES)
        std::memcpy(tile, codes, BYTES);
}

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of J panels.
template <int M, int J>
TARGET void multiply(const Operand *x, const int8_t *weights, int64_t panel_bytes, int64_t count,
                     const int32_t * /*weight_sums*/, int32_t (&sums)[M][SIDE * J]) {
    tiles::clear<0>();
    if (J > 1) tiles::clear<1>();
    if (M > SIDE) tiles::clear<2>();
    if (M > SIDE && J > 1) tiles::clear<3>();
    for (; count > 0; count -= BYTES, x += M * BYTES, weights += TILE) {
        tiles::load<4>(x, BYTES);
        tiles::load<6>(weights, BYTES);
        tiles::multiply_codes<0, 4, 6>();
        if (J > 1) tiles::load<7>(weights + panel_bytes, BYTES);
        if (J > 1) tiles::multiply_codes<1, 4, 7>();
        if (M > SIDE) tiles::load<5>(x + TILE, BYTES);
        if (M > SIDE) tiles::multiply_codes<2, 5, 6>();
        if (M > SIDE && J > 1) tiles::multiply_codes<3, 5, 7>();
    }
    constexpr int64_t stride = sizeof(sums[0]);
    tiles::store<0>(sums[0], stride);
    if (J > 1) tiles::store<1>(sums[0] + SIDE, stride);
    if (M > SIDE) tiles::store<2>(sums[M / 2], stride);
    if (M > SIDE && J > 1) tiles::store<3>(sums[M / 2] + SIDE, stride);
}

INLINE Floats load_sums(const int32_t *sums) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums)); }

} // namespace
} // namespace int8
