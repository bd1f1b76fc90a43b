// Products of codes with NEON as every aarch64 CPU has it: products of 16 bits, which are added in pairs to sums of 32.
//
// A sum has two halves, of the first two inputs of each word and of its last two, side by side; they are added at the
// end.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = int8_t;
constexpr int ROWS = 2; // 16 of 32 registers are sums
constexpr int num_panels(int64_t /*rows*/) { return 1; }

INLINE Operand take_code(int8_t code) { return code; }

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of a panel. Not inlined, so that the sums
// get all registers.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Operand *x, const int8_t *weights, int64_t /*panel_bytes*/,
                                               int64_t count, const int32_t * /*weight_sums*/,
                                               int32_t (&sums)[M][16 * J]) {
    static_assert(J == 1, "panels are multiplied one by one");
    int32x4_t halves[M][8];
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < 8; ++v) halves[m][v] = vdupq_n_s32(0);
    for (const int8_t *end = weights + 16 * count; weights < end; weights += 64, x += 4 * M) {
#pragma GCC unroll 2
        for (int m = 0; m < M; ++m) {
            const int8x8_t word = vreinterpret_s8_s32(vld1_dup_s32(reinterpret_cast<const int32_t *>(x + 4 * m)));
#pragma GCC unroll 8
            for (int v = 0; v < 8; ++v)
                halves[m][v] = vpadalq_s16(halves[m][v], vmull_s8(vld1_s8(weights + 8 * v), word));
        }
    }
#pragma GCC unroll 2
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < 8; v += 2) vst1q_s32(sums[m] + 2 * v, vpaddq_s32(halves[m][v], halves[m][v + 1]));
}

} // namespace
} // namespace int8

#include "int8_neon_sums.h"
#include "int8_words.h"
