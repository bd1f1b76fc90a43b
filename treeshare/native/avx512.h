// AVX-512 with its instructions for bfloat16.

#pragma once

#include "instruction_sets.h"

#define TARGET __attribute__((target(AVX512_FEATURES)))
#define LEVEL_EXPORT(name) treeshare_##name##_avx512

#include "floats512.h"

namespace bfloat16_tiles {
using namespace float32_tiles;
using Operand = uint16_t; // of a dot product's left side: bfloat16
using Packed = uint16_t;  // of its right side
constexpr int STEP = 2;   // neighbouring inputs that add_products takes
constexpr int STRIP = 32; // numbers that `interleave` takes of each row
} // namespace bfloat16_tiles

INLINE __mmask32 first32(int64_t count) { return count >= 32 ? ~0u : count <= 0 ? 0u : (1u << count) - 1; }

INLINE void store_bf16(int64_t count, uint16_t *target, Floats x) {
    _mm256_mask_storeu_epi16(target, first16(count), (__m256i)_mm512_cvtneps_pbh(x));
}

// Rounded to bfloat16, as a layer's result is when it is stored.
INLINE Floats round_bf16(Floats x) {
    const __m512i halves = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(halves, 16));
}

INLINE void copy_operands(const uint16_t *source, int64_t count, uint16_t *target) {
    for (int64_t i = 0; i < count; ++i) target[i] = source[i];
}

// bfloat16 as operands: where they are; nothing is copied.
INLINE const uint16_t *as_operands(const uint16_t *source, int64_t /*count*/, uint16_t * /*buffer*/) { return source; }

INLINE void store_operands(uint16_t *target, Floats x) {
    _mm256_store_si256(reinterpret_cast<__m256i *>(target), (__m256i)_mm512_cvtneps_pbh(x));
}

INLINE __m512bh pairs(const void *address) { return (__m512bh)_mm512_load_si512(address); }
INLINE __m512bh broadcast_pair(const uint16_t *address) {
    return (__m512bh)_mm512_set1_epi32(*reinterpret_cast<const int32_t *>(address));
}

// sums[m][j] += a[m] . b[j]: two neighbouring numbers of M rows, `stride` apart, and J vectors of sixteen pairs.
template <int M, int J>
INLINE void add_products(Floats (&sums)[M][J], const uint16_t *a, int64_t stride, const uint16_t *b) {
    __m512bh vectors[J];
    for (int j = 0; j < J; ++j) vectors[j] = pairs(b + 32 * j);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const __m512bh pair = broadcast_pair(a + m * stride);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], pair, vectors[j]);
    }
}

INLINE __m512i even_odd(bool high) {
    alignas(64) static const uint16_t low_index[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i index = _mm512_load_si512(low_index);
    return high ? _mm512_add_epi16(index, _mm512_set1_epi16(16)) : index;
}

// The first `count` of STRIP numbers of two rows, `stride` apart, as pairs; zeros for the rest and for a missing row.
INLINE void interleave(const uint16_t *even, int64_t stride, int num_rows, int count, uint16_t *target) {
    const __mmask32 mask = first32(count);
    const __m512i a = _mm512_maskz_loadu_epi16(mask, even);
    const __m512i b = num_rows > 1 ? _mm512_maskz_loadu_epi16(mask, even + stride) : _mm512_setzero_si512();
    _mm512_store_si512(target, _mm512_permutex2var_epi16(a, even_odd(false), b));
    _mm512_store_si512(target + 32, _mm512_permutex2var_epi16(a, even_odd(true), b));
}

// Up to sixteen rows of up to sixteen pairs become columns, see transpose_words.
INLINE void pack_words(const uint16_t *source, int64_t stride, int64_t num_rows, int num_words, uint16_t *target,
                       int64_t target_stride) {
    transpose_words(reinterpret_cast<const uint32_t *>(source), stride / 2, num_rows, num_words, reinterpret_cast<uint32_t *>(target), target_stride / 2);
}
