// Products of codes with VPDPBUSD, which multiplies numbers without a sign by numbers with one and adds four products to
// a sum, exactly. A row's codes get 128 added; a sum begins at -128 times the sum of its weights, which undoes it.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = uint8_t;
constexpr int ROWS = 6;
constexpr int num_panels(int64_t /*rows*/) { return 4; } // 24 of 32 registers are sums

INLINE Operand take_code(int8_t code) { return code ^ 0x80; }

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of J panels. Not inlined, so that the sums get
// all registers.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Operand *x, const int8_t *weights, int64_t panel_bytes, int64_t count,
                                               const int32_t *weight_sums, int32_t (&sums)[M][16 * J]) {
    __m512i own[M][J];
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
        const __m512i sum = _mm512_slli_epi32(_mm512_loadu_si512(weight_sums + 16 * j), 7);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) own[m][j] = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
    }
    for (const int8_t *end = weights + 16 * count; weights < end; weights += 64, x += 4 * M) {
        __m512i panels[J];
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) panels[j] = _mm512_loadu_si512(weights + j * panel_bytes);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const __m512i word = _mm512_set1_epi32(*reinterpret_cast<const int32_t *>(x + 4 * m));
#pragma GCC unroll 4
            for (int j = 0; j < J; ++j) own[m][j] = _mm512_dpbusd_epi32(own[m][j], word, panels[j]);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) _mm512_store_si512(sums[m] + 16 * j, own[m][j]);
}

INLINE Floats load_sums(const int32_t *sums) { return _mm512_cvtepi32_ps(_mm512_load_si512(sums)); }

} // namespace
} // namespace int8

#include "int8_words.h"
