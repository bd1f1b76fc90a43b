// Sixteen floats in one register: what all levels of 512 bits have in common. A level's header defines TARGET before it
// includes this one, and has conversions to bfloat16 and dot products of its own. level.h lists the names that the
// kernels are written in.

#pragma once

#include <immintrin.h>

#include <cstdint>

#define INLINE TARGET __attribute__((always_inline)) static inline

using Floats = __m512;
using Mask = __mmask16;

// Register tiles. A tile of attention has 6 rows, see QUERIES.
namespace float32_tiles {
constexpr int ATTENTION_VECTORS = 4; // of sixteen columns
constexpr int LINEAR_ROWS = 8;
constexpr int LINEAR_PANEL = 48; // columns
// Vectors of sixteen columns, for so many rows.
static constexpr int linear_vectors(int /*num_rows*/) { return 3; }
} // namespace float32_tiles

INLINE Mask first16(int64_t count) { return count >= 16 ? 0xffff : count <= 0 ? 0 : (1 << count) - 1; }

INLINE Floats broadcast(float x) { return _mm512_set1_ps(x); }
INLINE Floats load(const float *source) { return _mm512_loadu_ps(source); }
INLINE void store(float *target, Floats x) { _mm512_storeu_ps(target, x); }
INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
INLINE Floats sub(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
INLINE Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
INLINE Floats div(Floats a, Floats b) { return _mm512_div_ps(a, b); }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE Floats mul_sub(Floats a, Floats b, Floats c) { return _mm512_fmsub_ps(a, b, c); }
INLINE Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
INLINE Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); } // b where one is NaN
INLINE float sum_lanes(Floats x) { return _mm512_reduce_add_ps(x); }
INLINE float max_lanes(Floats x) { return _mm512_reduce_max_ps(x); }
INLINE float first_lane(Floats x) { return _mm512_cvtss_f32(x); }

INLINE Floats round_whole(Floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

// y * 2 ** power for a whole power of at least -150.
INLINE Floats scale_by_power(Floats y, Floats power) { return _mm512_scalef_ps(y, power); }

INLINE Mask greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
INLINE Mask at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
INLINE Mask equal(Floats a, Floats b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE Mask not_a_number(Floats x) { return _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q); }
INLINE __mmask16 bits(Mask mask) { return mask; }
INLINE Mask lanes_of(int bits) { return bits; }
INLINE Floats only(Mask mask, Floats x) { return _mm512_maskz_mov_ps(mask, x); } // zero elsewhere
INLINE Floats select_lanes(Mask mask, Floats x, Floats other) { return _mm512_mask_mov_ps(other, mask, x); }
INLINE Floats max_where(Mask mask, Floats a, Floats b) { return _mm512_mask_max_ps(a, mask, a, b); } // a elsewhere

// Store the lanes of a mask side by side; returns how many.
INLINE int compress(float *target, Mask mask, Floats x) {
    _mm512_mask_compressstoreu_ps(target, mask, x);
    return __builtin_popcount(mask);
}

// In lane i what lane i ^ DISTANCE has.
template <int DISTANCE>
INLINE Floats swap_lanes(Floats x) {
    if constexpr (DISTANCE == 1) return _mm512_permute_ps(x, 0xb1);
    if constexpr (DISTANCE == 2) return _mm512_permute_ps(x, 0x4e);
    if constexpr (DISTANCE == 4) return _mm512_shuffle_f32x4(x, x, 0xb1);
    if constexpr (DISTANCE == 8) return _mm512_shuffle_f32x4(x, x, 0x4e);
}

// Whole numbers from -127 to 127.
INLINE void store_codes(int8_t *target, Floats x) {
    _mm_storeu_si128(reinterpret_cast<__m128i *>(target), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}

// Up to sixteen numbers; what lies beyond `count` is not touched, and zero when read.
INLINE Floats load_first(int64_t count, const float *source) { return _mm512_maskz_loadu_ps(first16(count), source); }

INLINE void store_first(int64_t count, float *target, Floats x) { _mm512_mask_storeu_ps(target, first16(count), x); }

INLINE Floats load_bf16(int64_t count, const uint16_t *source) {
    const __m256i halves = _mm256_maskz_loadu_epi16(first16(count), source);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// x as it is: a compiler does not fuse the multiplication that it comes from with a later addition.
INLINE Floats rounded_once(Floats x) {
    __asm__("" : "+v"(x));
    return x;
}

// sum += a * b, rounded once
INLINE void accumulate(Floats &sum, Floats a, Floats b) { sum = _mm512_fmadd_ps(a, b, sum); }

// The sums, for reading after the last add_products.
template <int M, int J>
INLINE const Floats (&complete_sums(const Floats (&sums)[M][J]))[M][J] {
    return sums;
}

// Sixteen rows of sixteen 32-bit numbers become sixteen columns.
INLINE void transpose(__m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) { // r[4 k + i] has column 4 l + i of rows 4 k ... 4 k + 3 in its lane l
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88);
        r[4 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
        r[12 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
    }
}

// Sixteen rows of sixteen words, `stride` apart, become columns, which `keep` gets with their numbers. Or fewer of
// each, with zeros for rows that are missing. Fetches the sixteen rows below.
template <bool ALL, class Keep>
INLINE void take_columns(const uint32_t *source, int64_t stride, int64_t num_rows, int num_words, const Keep &keep) {
    const __mmask16 mask = first16(num_words);
    const uint32_t *row = source;
    __m512i r[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i, row += stride)
        r[i] = ALL            ? _mm512_loadu_si512(row)
               : i < num_rows ? _mm512_maskz_loadu_epi32(mask, row)
                              : _mm512_setzero_si512();
    for (int i = 16; i < 32; ++i, row += stride)
        if (i < num_rows) _mm_prefetch(reinterpret_cast<const char *>(row), _MM_HINT_T0);
    transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i)
        if (ALL || i < num_words) keep(i, r[i]);
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
    TARGET inline void operator()(int64_t word, __m512i column) const {
        _mm512_store_si512(target + word * stride, column);
    }
};
INLINE void transpose_words(const uint32_t *source, int64_t stride, int64_t num_rows, int num_words, uint32_t *target,
                            int64_t target_stride) {
    take_columns(source, stride, num_rows, num_words, KeepWords{target, target_stride});
}

#include "float32_products.h"
