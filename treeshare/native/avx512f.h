// AVX-512 without instructions for bfloat16, which is widened to float32.

#pragma once

#include "instruction_sets.h"

#define TARGET __attribute__((target(AVX512F_FEATURES)))
#define LEVEL_EXPORT(name) treeshare_##name##_avx512f

#include "floats512.h"

// Rounded to bfloat16, in the upper half of each lane, as vcvtneps2bf16 does it: to nearest, ties to even; NaN stays
// NaN, and what is too small for a normal number becomes zero of its sign.
INLINE __m512i rounded(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i result = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    result = _mm512_mask_or_epi32(result, not_a_number(x), bits, _mm512_set1_epi32(0x00400000));
    result = _mm512_and_si512(result, _mm512_set1_epi32(0xffff0000));
    const __mmask16 tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f800000));
    return _mm512_mask_and_epi32(result, tiny, bits, _mm512_set1_epi32(0x80000000));
}
INLINE Floats round_bf16(Floats x) { return _mm512_castsi512_ps(rounded(x)); }
INLINE void store_bf16(int64_t count, uint16_t *target, Floats x) {
    _mm256_mask_storeu_epi16(target, first16(count), _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded(x), 16)));
}

// Pairs of bfloat16 become columns, see take_columns: each two of float32.
struct KeepPairs {
    float *target;
    int64_t stride;
    TARGET inline void operator()(int64_t word, __m512i column) const {
        float *place = target + 2 * word * stride;
        store(place, _mm512_castsi512_ps(_mm512_slli_epi32(column, 16)));
        store(place + stride, _mm512_castsi512_ps(_mm512_and_si512(column, _mm512_set1_epi32(0xffff0000))));
    }
};
INLINE void pack_words(const uint16_t *source, int64_t stride, int64_t num_rows, int num_words, float *target,
                       int64_t target_stride) {
    take_columns(reinterpret_cast<const uint32_t *>(source), stride / 2, num_rows, num_words,
                 KeepPairs{target, target_stride});
}

#include "widened.h"
