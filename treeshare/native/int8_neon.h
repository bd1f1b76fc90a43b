// Products of codes with NEON as every aarch64 CPU has it: products of 16 bits, which are added in pairs to sums of 32;
// see int8_panel.h.
//
// A sum has two halves, of the first two inputs of each word and of its last two, side by side; they are added at the
// end.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = int8_t;
using Codes = int8x8_t;
using Sums = int32x4_t;
constexpr int VECTORS = 8;
constexpr int ROWS = 2; // 16 of 32 registers are sums

INLINE Operand take_code(int8_t code) { return code; }
INLINE Sums zero() { return vdupq_n_s32(0); }
INLINE Codes load_codes(const int8_t *codes) { return vld1_s8(codes); }
INLINE Codes spread(const int8_t *word) {
    return vreinterpret_s8_s32(vld1_dup_s32(reinterpret_cast<const int32_t *>(word)));
}
INLINE Sums add_codes(Sums sum, Codes a, Codes b) { return vpadalq_s16(sum, vmull_s8(a, b)); }

INLINE void store_sums(int32_t *sums, const Sums (&halves)[VECTORS]) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; v += 2) vst1q_s32(sums + 2 * v, vpaddq_s32(halves[v], halves[v + 1]));
}

} // namespace
} // namespace int8

#include "int8_neon_sums.h"
#include "int8_panel.h"
