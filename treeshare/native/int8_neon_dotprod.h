// Products of codes with SDOT, which adds four products to a sum of 32 bits, exactly.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = int8_t;
constexpr int ROWS = 6; // 24 of 32 registers are sums
constexpr int num_panels(int64_t /*rows*/) { return 1; }

INLINE Operand take_code(int8_t code) { return code; }

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of a panel. Not inlined, so that the sums
// get all registers.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Operand *x, const int8_t *weights, int64_t /*panel_bytes*/,
                                               int64_t count, const int32_t * /*weight_sums*/,
                                               int32_t (&sums)[M][16 * J]) {
    static_assert(J == 1, "panels are multiplied one by one");
    int32x4_t own[M][4];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) own[m][v] = vdupq_n_s32(0);
    for (const int8_t *end = weights + 16 * count; weights < end; weights += 64, x += 4 * M) {
        int8x16_t codes[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) codes[v] = vld1q_s8(weights + 16 * v);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const int8x16_t word = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t *>(x + 4 * m)));
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) add_dots(own[m][v], codes[v], word);
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) vst1q_s32(sums[m] + 4 * v, own[m][v]);
}

} // namespace
} // namespace int8

#include "int8_neon_sums.h"
#include "int8_words.h"
