// Pairs of codes in vectors of 512 bits; see int8_pairs.h and int8_panel.h.

#pragma once

#include <cstdint>

#include "int8_pairs.h"

namespace int8 {
namespace {

using Codes = __m512i; // numbers of 16 bits
using Sums = __m512i;
constexpr int VECTORS = 2;
constexpr int ROWS = 8; // 16 of 32 registers are sums: with more, compilers keep some of them in memory

INLINE Sums zero() { return _mm512_setzero_si512(); }
INLINE Codes load_codes(const int8_t *codes) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(codes)));
}
INLINE Codes spread(const int16_t *word) { return _mm512_set1_epi64(*reinterpret_cast<const int64_t *>(word)); }
INLINE Sums add_codes(Sums sum, Codes a, Codes b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }

INLINE void store_sums(int32_t *sums, const Sums (&halves)[VECTORS]) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
    const __m512i first = _mm512_permutex2var_epi32(halves[0], even, halves[1]);
    _mm512_store_si512(sums, _mm512_add_epi32(first, _mm512_permutex2var_epi32(halves[0], odd, halves[1])));
}

INLINE Floats load_sums(const int32_t *sums) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums)); }

} // namespace
} // namespace int8

#include "int8_panel.h"
