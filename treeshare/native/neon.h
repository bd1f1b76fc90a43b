// NEON as every aarch64 CPU has it; bfloat16 is widened to float32, in the order of additions of avx2.h.

#pragma once

#define LEVEL_EXPORT(name) treeshare_##name##_neon

#include "neon_floats.h"

#include "copied_sums.h"

template <int M, int J>
INLINE CompleteSums<M, J> complete_sums(const Floats (&sums)[M][J]) {
    return copied_sums(sums);
}

// The first and the second number of four pairs of bfloat16.
INLINE float32x4_t first_of(uint32x4_t pairs) { return vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16)); }
INLINE float32x4_t second_of(uint32x4_t pairs) {
    return vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000)));
}

// Up to sixteen rows of up to sixteen pairs become columns, see transpose_words; a pair becomes two of them.
INLINE void pack_words(const uint16_t *source, int64_t stride, int64_t num_rows, int num_words, float *target,
                       int64_t target_stride) {
    alignas(64) uint32_t words[16 * 16];
    transpose_words(reinterpret_cast<const uint32_t *>(source), stride / 2, num_rows, num_words, words, 16);
    for (int word = 0; word < num_words; ++word, target += 2 * target_stride) {
        for (int row = 0; row < 16; row += 4) {
            const uint32x4_t pairs = vld1q_u32(words + 16 * word + row);
            vst1q_f32(target + row, first_of(pairs));
            vst1q_f32(target + target_stride + row, second_of(pairs));
        }
    }
}

#include "float32_products.h"
#include "widened.h"
