// Sixteen floats as AVX2 has them, in two registers; bfloat16 is widened to float32. The names are those of
// floats512.h, and so are the bits of every result.

#pragma once

#include <immintrin.h>

#include <cstdint>

#include "instruction_sets.h"

#define TARGET __attribute__((target(AVX2_FEATURES)))
#define INLINE TARGET __attribute__((always_inline)) static inline
#define LEVEL_EXPORT(name) treeshare_##name##_avx2

struct Floats {
    __m256 low, high;
};
struct Mask { // all bits of a lane are set, or none
    __m256 low, high;
};

// Register tiles. A tile of attention has 6 rows, see QUERIES: with 16 columns its sums take 12 of 16 registers.
namespace float32_tiles {
constexpr int ATTENTION_VECTORS = 1; // of sixteen columns
constexpr int LINEAR_ROWS = 6;
constexpr int LINEAR_PANEL = 32; // columns
// Vectors of sixteen columns, for so many rows.
static constexpr int linear_vectors(int num_rows) { return num_rows <= 3 ? 2 : 1; }
} // namespace float32_tiles

INLINE __m256i lanes(int first) { // the numbers of eight lanes, from `first` on
    return _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
}
INLINE __m256 below(int64_t count, int first) { // which of them are below `count`
    const __m256i limit = _mm256_set1_epi32(count < 0 ? 0 : count > 16 ? 16 : count);
    return _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, lanes(first)));
}
INLINE Mask first16(int64_t count) { return {below(count, 0), below(count, 8)}; }

#define BINARY(type, name, instruction)                                                                                \
    INLINE type name(Floats a, Floats b) { return {instruction(a.low, b.low), instruction(a.high, b.high)}; }
#define TERNARY(name, instruction)                                                                                    \
    INLINE Floats name(Floats a, Floats b, Floats c) {                                                                 \
        return {instruction(a.low, b.low, c.low), instruction(a.high, b.high, c.high)};                                \
    }
#define COMPARISON(name, operation)                                                                                    \
    INLINE Mask name(Floats a, Floats b) {                                                                             \
        return {_mm256_cmp_ps(a.low, b.low, operation), _mm256_cmp_ps(a.high, b.high, operation)};                     \
    }

BINARY(Floats, add, _mm256_add_ps)
BINARY(Floats, sub, _mm256_sub_ps)
BINARY(Floats, mul, _mm256_mul_ps)
BINARY(Floats, div, _mm256_div_ps)
BINARY(Floats, min, _mm256_min_ps)
BINARY(Floats, max, _mm256_max_ps) // b where one is NaN
TERNARY(mul_add, _mm256_fmadd_ps)
TERNARY(mul_sub, _mm256_fmsub_ps)
COMPARISON(greater, _CMP_GT_OQ)
COMPARISON(at_least, _CMP_GE_OQ)
COMPARISON(equal, _CMP_EQ_OQ)

INLINE Floats broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
INLINE Floats load(const float *source) { return {_mm256_loadu_ps(source), _mm256_loadu_ps(source + 8)}; }
INLINE void store(float *target, Floats x) {
    _mm256_storeu_ps(target, x.low);
    _mm256_storeu_ps(target + 8, x.high);
}
INLINE float first_lane(Floats x) { return _mm256_cvtss_f32(x.low); }

// In the order of _mm512_reduce_add_ps.
INLINE float sum_lanes(Floats x) {
    const __m256 eight = _mm256_add_ps(x.high, x.low);
    const __m128 four = _mm_add_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE float max_lanes(Floats x) {
    const __m256 eight = _mm256_max_ps(x.high, x.low);
    const __m128 four = _mm_max_ps(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

INLINE __m256 whole(__m256 x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE Floats round_whole(Floats x) { return {whole(x.low), whole(x.high)}; }

// y * 2 ** power in two steps, neither of which leaves the exponents that a float has; rounds once, in the second.
INLINE __m256 scaled(__m256 y, __m256 power) {
    const __m256i all = _mm256_cvtps_epi32(_mm256_min_ps(power, _mm256_set1_ps(250.0f)));
    const __m256i half = _mm256_srai_epi32(all, 1), bias = _mm256_set1_epi32(127);
    const __m256i first = _mm256_slli_epi32(_mm256_add_epi32(half, bias), 23);
    const __m256i second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_sub_epi32(all, half), bias), 23);
    __m256 result = _mm256_mul_ps(_mm256_mul_ps(y, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
    __asm__("" : "+x"(result)); // else a compiler may fuse the multiplication with a later addition: other bits
    return result;
}
INLINE Floats scale_by_power(Floats y, Floats power) { return {scaled(y.low, power.low), scaled(y.high, power.high)}; }

INLINE Mask not_a_number(Floats x) {
    return {_mm256_cmp_ps(x.low, x.low, _CMP_UNORD_Q), _mm256_cmp_ps(x.high, x.high, _CMP_UNORD_Q)};
}
INLINE int bits(Mask mask) { return _mm256_movemask_ps(mask.low) | _mm256_movemask_ps(mask.high) << 8; }
INLINE __m256 eight_of(int bits) {
    const __m256i places = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(bits), places), places));
}
INLINE Mask lanes_of(int bits) { return {eight_of(bits), eight_of(bits >> 8)}; }
INLINE Floats only(Mask mask, Floats x) { // zero elsewhere
    return {_mm256_and_ps(mask.low, x.low), _mm256_and_ps(mask.high, x.high)};
}
INLINE Floats select_lanes(Mask mask, Floats x, Floats other) {
    return {_mm256_blendv_ps(other.low, x.low, mask.low), _mm256_blendv_ps(other.high, x.high, mask.high)};
}
INLINE Floats max_where(Mask mask, Floats a, Floats b) { return select_lanes(mask, max(a, b), a); } // a elsewhere

#include "lanes_in_memory.h"

// In lane i what lane i ^ DISTANCE has.
template <int DISTANCE>
INLINE __m256 swap_eight(__m256 x) {
    if constexpr (DISTANCE == 1) return _mm256_permute_ps(x, 0xb1);
    if constexpr (DISTANCE == 2) return _mm256_permute_ps(x, 0x4e);
    if constexpr (DISTANCE == 4) return _mm256_permute2f128_ps(x, x, 1);
}
template <int DISTANCE>
INLINE Floats swap_lanes(Floats x) {
    if constexpr (DISTANCE == 8)
        return {x.high, x.low};
    else
        return {swap_eight<DISTANCE>(x.low), swap_eight<DISTANCE>(x.high)};
}

// Whole numbers from -127 to 127.
INLINE void store_codes(int8_t *target, Floats x) {
    const __m256i mixed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
    const __m256i words = _mm256_permute4x64_epi64(mixed, 0xd8);
    const __m128i codes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(target), codes);
}

// Up to sixteen numbers; what lies beyond `count` is not touched, and zero when read.
INLINE Floats load_first(int64_t count, const float *source) {
    const Mask mask = first16(count);
    return {_mm256_maskload_ps(source, _mm256_castps_si256(mask.low)),
            _mm256_maskload_ps(source + 8, _mm256_castps_si256(mask.high))};
}

INLINE void store_first(int64_t count, float *target, Floats x) {
    const Mask mask = first16(count);
    _mm256_maskstore_ps(target, _mm256_castps_si256(mask.low), x.low);
    _mm256_maskstore_ps(target + 8, _mm256_castps_si256(mask.high), x.high);
}

INLINE __m256i load_halves(int64_t count, const uint16_t *source) {
    if (count >= 16) return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(source));
    alignas(32) uint16_t values[16] = {0};
    for (int64_t i = 0; i < count; ++i) values[i] = source[i];
    return _mm256_load_si256(reinterpret_cast<const __m256i *>(values));
}

INLINE __m256 widen(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

INLINE Floats load_bf16(int64_t count, const uint16_t *source) {
    const __m256i halves = load_halves(count, source);
    return {widen(_mm256_castsi256_si128(halves)), widen(_mm256_extracti128_si256(halves, 1))};
}

// Rounded to bfloat16, in the upper half of each lane, as vcvtneps2bf16 does it: to nearest, ties to even; NaN stays
// NaN, and what is too small for a normal number becomes zero of its sign.
INLINE __m256i rounded(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x), upper = _mm256_set1_epi32(0xffff0000);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i result = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
    result = _mm256_blendv_epi8(result, quiet, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
    const __m256i size = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    const __m256i tiny = _mm256_cmpgt_epi32(_mm256_set1_epi32(0x00800000), size);
    result = _mm256_blendv_epi8(result, bits, tiny);
    return _mm256_and_si256(result, _mm256_blendv_epi8(upper, _mm256_set1_epi32(0x80000000), tiny));
}

INLINE void store_bf16(int64_t count, uint16_t *target, Floats x) {
    const __m256i low = _mm256_srli_epi32(rounded(x.low), 16), high = _mm256_srli_epi32(rounded(x.high), 16);
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8);
    if (count >= 16) return _mm256_storeu_si256(reinterpret_cast<__m256i *>(target), halves);
    alignas(32) uint16_t values[16];
    _mm256_store_si256(reinterpret_cast<__m256i *>(values), halves);
    for (int64_t i = 0; i < count; ++i) target[i] = values[i];
}

// Rounded to bfloat16, as a layer's result is when it is stored.
INLINE Floats round_bf16(Floats x) {
    return {_mm256_castsi256_ps(rounded(x.low)), _mm256_castsi256_ps(rounded(x.high))};
}

// x as it is: a compiler does not fuse the multiplication that it comes from with a later addition.
INLINE Floats rounded_once(Floats x) {
    __asm__("" : "+x"(x.low), "+x"(x.high));
    return x;
}

// sum += a * b, rounded once. By members: whole structs would be copied through memory.
INLINE void accumulate(Floats &sum, Floats a, Floats b) {
    sum.low = _mm256_fmadd_ps(a.low, b.low, sum.low);
    sum.high = _mm256_fmadd_ps(a.high, b.high, sum.high);
}

#include "copied_sums.h"

template <int M, int J>
INLINE CompleteSums<M, J> complete_sums(const Floats (&sums)[M][J]) {
    return copied_sums(sums);
}

// Eight rows of eight 32-bit numbers become eight columns.
INLINE void transpose(__m256i (&r)[8]) {
    __m256i t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x20);
        t[4 + i] = _mm256_permute2x128_si256(r[i], r[4 + i], 0x31);
    }
    for (int i = 0; i < 8; ++i) r[i] = t[i];
}

// Sixteen rows of sixteen words, `stride` apart, become columns, which `keep` gets by halves: the word, the first of
// eight rows and the half. Or fewer of each, with zeros for rows that are missing. Fetches the sixteen rows below.
template <bool ALL, class Keep>
INLINE void take_columns(const uint32_t *source, int64_t stride, int64_t num_rows, int num_words, const Keep &keep) {
    for (int row = 16; row < 32; ++row)
        if (row < num_rows) _mm_prefetch(reinterpret_cast<const char *>(source + row * stride), _MM_HINT_T0);
    for (int row = 0; row < 16; row += 8) {
        for (int word = 0; word < (ALL ? 16 : num_words); word += 8) {
            const __m256i mask = _mm256_castps_si256(below(num_words - word, 0));
            const int *numbers = reinterpret_cast<const int *>(source + row * stride + word);
            __m256i r[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i, numbers += stride)
                r[i] = ALL                  ? _mm256_loadu_si256(reinterpret_cast<const __m256i *>(numbers))
                       : row + i < num_rows ? _mm256_maskload_epi32(numbers, mask)
                                            : _mm256_setzero_si256();
            transpose(r);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i)
                if (ALL || word + i < num_words) keep(word + i, row, r[i]);
        }
    }
}
template <class Keep>
INLINE void take_columns(const uint32_t *source, int64_t stride, int64_t num_rows, int num_words, const Keep &keep) {
    if (num_rows >= 16 && num_words == 16) return take_columns<true>(source, stride, num_rows, 16, keep);
    take_columns<false>(source, stride, num_rows, num_words, keep);
}

// They become target[word * target_stride + row].
struct KeepWords {
    uint32_t *target;
    int64_t stride;
    TARGET inline void operator()(int64_t word, int row, __m256i half) const {
        _mm256_store_si256(reinterpret_cast<__m256i *>(target + word * stride + row), half);
    }
};
INLINE void transpose_words(const uint32_t *source, int64_t stride, int64_t num_rows, int num_words, uint32_t *target,
                            int64_t target_stride) {
    take_columns(source, stride, num_rows, num_words, KeepWords{target, target_stride});
}

// The same of pairs of bfloat16, each of which becomes two columns of float32.
struct KeepPairs {
    float *target;
    int64_t stride;
    TARGET inline void operator()(int64_t word, int row, __m256i half) const {
        float *place = target + 2 * word * stride + row;
        _mm256_store_ps(place, _mm256_castsi256_ps(_mm256_slli_epi32(half, 16)));
        const __m256i second = _mm256_and_si256(half, _mm256_set1_epi32(0xffff0000));
        _mm256_store_ps(place + stride, _mm256_castsi256_ps(second));
    }
};
INLINE void pack_words(const uint16_t *source, int64_t stride, int64_t num_rows, int num_words, float *target,
                       int64_t target_stride) {
    take_columns(reinterpret_cast<const uint32_t *>(source), stride / 2, num_rows, num_words,
                 KeepPairs{target, target_stride});
}

#include "float32_products.h"
#include "widened.h"
