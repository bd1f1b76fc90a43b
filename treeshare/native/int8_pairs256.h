// Pairs of codes in vectors of 256 bits; see int8_pairs.h and int8_panel.h.

#pragma once

#include <cstdint>

#include "int8_pairs.h"

namespace int8 {
namespace {

using Codes = __m256i; // numbers of 16 bits
using Sums = __m256i;
constexpr int VECTORS = 4;
constexpr int ROWS = 2; // 8 of 16 registers are sums

INLINE Sums zero() { return _mm256_setzero_si256(); }
INLINE Codes load_codes(const int8_t *codes) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(codes)));
}
INLINE Codes spread(const int16_t *word) { return _mm256_set1_epi64x(*reinterpret_cast<const int64_t *>(word)); }
INLINE Sums add_codes(Sums sum, Codes a, Codes b) { return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b)); }

INLINE void store_sums(int32_t *sums, const Sums (&halves)[VECTORS]) {
    for (int v = 0; v < VECTORS; v += 2) {
        const Sums mixed = _mm256_hadd_epi32(halves[v], halves[v + 1]); // 0 1 4 5, 2 3 6 7
        _mm256_store_si256(reinterpret_cast<__m256i *>(sums + 4 * v), _mm256_permute4x64_epi64(mixed, 0xd8));
    }
}

INLINE Floats load_sums(const int32_t *sums) {
    const __m256i *eight = reinterpret_cast<const __m256i *>(sums);
    return {_mm256_cvtepi32_ps(_mm256_load_si256(eight)), _mm256_cvtepi32_ps(_mm256_load_si256(eight + 1))};
}

} // namespace
} // namespace int8

#include "int8_panel.h"
