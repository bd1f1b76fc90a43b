// NEON as every aarch64 CPU has it; bfloat16 is widened to float32, in the order of additions of avx2.h.

#pragma once

#define LEVEL_EXPORT(name) treeshare_##name##_neon

#include "neon_floats.h"

// The sums, for reading after the last add_products: a copy, or gcc would not keep them in registers until then.
template <int M, int J>
struct CompleteSums {
    Floats rows[M][J];
    const Floats *operator[](int m) const { return rows[m]; }
};
template <int M, int J>
INLINE CompleteSums<M, J> complete_sums(const Floats (&sums)[M][J]) {
    CompleteSums<M, J> copy;
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < J; ++j) copy.rows[m][j] = sums[m][j];
    return copy;
}

// The first and the second number of sixteen pairs of bfloat16.
INLINE float32x4_t first_of(const uint32_t *pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(vld1q_u32(pairs), 16)); }
INLINE float32x4_t second_of(const uint32_t *pairs) {
    return vreinterpretq_f32_u32(vandq_u32(vld1q_u32(pairs), vdupq_n_u32(0xffff0000)));
}
INLINE Floats first_numbers(const uint32_t *pairs) {
    return {first_of(pairs), first_of(pairs + 4), first_of(pairs + 8), first_of(pairs + 12)};
}
INLINE Floats second_numbers(const uint32_t *pairs) {
    return {second_of(pairs), second_of(pairs + 4), second_of(pairs + 8), second_of(pairs + 12)};
}

#include "float32_products.h"
#include "widened.h"
