// Products of codes with SDOT, which adds four products to a sum of 32 bits, exactly; see int8_panel.h.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = int8_t;
using Codes = int8x16_t;
using Sums = int32x4_t;
constexpr int VECTORS = 4;
constexpr int ROWS = 6; // 24 of 32 registers are sums

INLINE Operand take_code(int8_t code) { return code; }
INLINE Sums zero() { return vdupq_n_s32(0); }
INLINE Codes load_codes(const int8_t *codes) { return vld1q_s8(codes); }
INLINE Codes spread(const int8_t *word) {
    return vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t *>(word)));
}
INLINE Sums add_codes(Sums sum, Codes a, Codes b) {
    add_dots(sum, a, b);
    return sum;
}

INLINE void store_sums(int32_t *sums, const Sums (&own)[VECTORS]) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) vst1q_s32(sums + 4 * v, own[v]);
}

} // namespace
} // namespace int8

#include "int8_neon_sums.h"
#include "int8_panel.h"
