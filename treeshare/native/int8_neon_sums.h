// Sums of codes' products as floats, with NEON.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

INLINE float32x4_t load_four(const int32_t *sums) { return vcvtq_f32_s32(vld1q_s32(sums)); }
INLINE Floats load_sums(const int32_t *sums) {
    return {load_four(sums), load_four(sums + 4), load_four(sums + 8), load_four(sums + 12)};
}

} // namespace
} // namespace int8
