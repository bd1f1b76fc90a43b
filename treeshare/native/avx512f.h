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

// The first and the second number of sixteen pairs of bfloat16.
INLINE Floats first_numbers(const uint32_t *pairs) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_load_si512(pairs), 16));
}
INLINE Floats second_numbers(const uint32_t *pairs) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_load_si512(pairs), _mm512_set1_epi32(0xffff0000)));
}

#include "widened.h"
