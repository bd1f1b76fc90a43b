// Products of codes with SMMLA, which multiplies two rows of eight codes by eight codes of two outputs and adds the
// products to four sums of 32 bits, exactly.
//
// Eight codes are two words. A tile counts as an even number of rows; sums of a row that is not there nobody reads.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = int8_t;
constexpr int ROWS = 6, ROW_STEP = 2; // 24 of 32 registers are sums
constexpr int num_panels(int64_t /*rows*/) { return 1; }

struct Session {};

// Row m of a tile: eight codes of it, then of the others.
INLINE void take_row(const int8_t *codes, int64_t inputs, int64_t m, int64_t height, Operand *tile) {
    for (tile += 8 * m; inputs > 0; inputs -= 8, codes += 8, tile += 8 * height) vst1_s8(tile, vld1_s8(codes));
}

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of a panel. Not inlined, so that the sums
// get all registers.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Operand *x, const int8_t *weights, int64_t /*panel_bytes*/,
                                               int64_t count, const int32_t * /*weight_sums*/,
                                               int32_t (&sums)[M][16 * J]) {
    static_assert(J == 1 && M % 2 == 0, "panels are multiplied one by one, rows in pairs");
    int32x4_t own[M / 2][8]; // of two outputs of a row, and of its neighbour
#pragma GCC unroll 4
    for (int m = 0; m < M / 2; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < 8; ++v) own[m][v] = vdupq_n_s32(0);
    for (const int8_t *end = weights + 16 * count; weights < end; weights += 128, x += 8 * M) {
#pragma GCC unroll 4
        for (int v = 0; v < 8; v += 2) { // four outputs
            const int32x4_t first = vreinterpretq_s32_s8(vld1q_s8(weights + 8 * v));
            const int32x4_t second = vreinterpretq_s32_s8(vld1q_s8(weights + 64 + 8 * v));
            const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(first, second));
            const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(first, second));
#pragma GCC unroll 4
            for (int m = 0; m < M / 2; ++m) {
                const int8x16_t rows = vld1q_s8(x + 16 * m);
                add_products_of_codes(own[m][v], rows, low);
                add_products_of_codes(own[m][v + 1], rows, high);
            }
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M / 2; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < 8; ++v) {
            vst1_s32(sums[2 * m] + 2 * v, vget_low_s32(own[m][v]));
            vst1_s32(sums[2 * m + 1] + 2 * v, vget_high_s32(own[m][v]));
        }
}

} // namespace
} // namespace int8

#include "int8_neon_sums.h"
