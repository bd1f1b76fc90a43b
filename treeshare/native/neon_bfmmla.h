// NEON with BFMMLA, which multiplies two rows of four bfloat16 by two columns of four, and BFDOT, the same for one row
// and pairs. The sums are in bits of their own: of every pair of products, and of that and the sum before, the last bit
// is rounded to odd. BFMMLA is two BFDOTs one after the other (Arm's manual, BFMatMulAdd), so a row's bits do not depend on
// whether it has a neighbour.
//
// The instructions are written as assembly: nothing else that CPUs with them have is used.

#pragma once

#define LEVEL_EXPORT(name) treeshare_##name##_neon_bfmmla

#include "neon_floats.h"

namespace bfloat16_tiles {
using namespace float32_tiles;
using Operand = uint16_t; // of a dot product's left side: bfloat16
using Packed = uint16_t;  // of its right side
constexpr int STEP = 4;   // neighbouring inputs that add_products takes
constexpr int STRIP = 16; // numbers that `interleave` takes of each row
} // namespace bfloat16_tiles

// sum[2 i + j] += rows[i] . columns[j], i and j 0 and 1, of four numbers each.
INLINE void multiply_pairs(float32x4_t &sum, uint16x8_t rows, uint16x8_t columns) {
    __asm__(".arch_extension bf16\n\tbfmmla %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(rows), "w"(columns));
}
// sum[i] += pair . pairs[i], four pairs.
INLINE void multiply_pair(float32x4_t &sum, uint32x4_t pairs, uint32x4_t pair) {
    __asm__(".arch_extension bf16\n\tbfdot %0.4s, %1.8h, %2.8h" : "+w"(sum) : "w"(pairs), "w"(pair));
}

INLINE void copy_operands(const uint16_t *source, int64_t count, uint16_t *target) {
    for (int64_t i = 0; i < count; ++i) target[i] = source[i];
}

// bfloat16 as operands: where they are; nothing is copied.
INLINE const uint16_t *as_operands(const uint16_t *source, int64_t /*count*/, uint16_t * /*buffer*/) { return source; }

INLINE void store_operands(uint16_t *target, Floats x) { store_halves(16, target, to_halves(x)); }

INLINE uint16x8_t load_two(const uint16_t *a, int64_t stride) { return vcombine_u16(vld1_u16(a), vld1_u16(a + stride)); }

// Pairs of neighbouring rows times four columns of four numbers, in two registers of the sums of the pairs' first or
// second rows. The rows are mixed while the sums grow: register i of the first has columns 2 i and 2 i + 1 of both,
// register i of the second columns 8 + 2 i and 9 + 2 i.
template <int M, int J>
INLINE void add_columns(Floats (&sums)[M][J], int j, const uint16x8_t (&rows)[M / 2 + 1], const uint16_t *b, int second,
                        float32x4_t Floats::*low, float32x4_t Floats::*high) {
    const Halves columns = load_halves(16, b);
#pragma GCC unroll 4
    for (int m = 0; m + 1 < M; m += 2) {
        multiply_pairs(sums[m + second][j].*low, rows[m / 2], columns.low);
        multiply_pairs(sums[m + second][j].*high, rows[m / 2], columns.high);
    }
}

// A row without a neighbour times sixteen columns, four of them in each register.
INLINE void multiply_four(float32x4_t &sum, uint32x4_t first, uint32x4_t second, Halves columns) {
    const uint32x4_t low = vreinterpretq_u32_u16(columns.low), high = vreinterpretq_u32_u16(columns.high);
    multiply_pair(sum, vuzp1q_u32(low, high), first);
    multiply_pair(sum, vuzp2q_u32(low, high), second);
}
INLINE void multiply_one(Floats &sum, const uint16_t *row, const uint16_t *b) {
    uint32_t pairs[2];
    std::memcpy(pairs, row, sizeof(pairs));
    const uint32x4_t first = vdupq_n_u32(pairs[0]), second = vdupq_n_u32(pairs[1]);
    multiply_four(sum.q0, first, second, load_halves(16, b));
    multiply_four(sum.q1, first, second, load_halves(16, b + 16));
    multiply_four(sum.q2, first, second, load_halves(16, b + 32));
    multiply_four(sum.q3, first, second, load_halves(16, b + 48));
}

// sums[m][j] += a[m] . b[j]: four neighbouring numbers of M rows, `stride` apart, and J vectors of sixteen columns.
template <int M, int J>
INLINE void add_products(Floats (&sums)[M][J], const uint16_t *a, int64_t stride, const uint16_t *b) {
    uint16x8_t rows[M / 2 + 1];
#pragma GCC unroll 4
    for (int m = 0; m + 1 < M; m += 2) rows[m / 2] = load_two(a + m * stride, stride);
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j, b += 64) {
        add_columns(sums, j, rows, b, 0, &Floats::q0, &Floats::q1);
        add_columns(sums, j, rows, b + 16, 0, &Floats::q2, &Floats::q3);
        add_columns(sums, j, rows, b + 32, 1, &Floats::q0, &Floats::q1);
        add_columns(sums, j, rows, b + 48, 1, &Floats::q2, &Floats::q3);
        if (M % 2 == 1) multiply_one(sums[M - 1][j], a + (M - 1) * stride, b);
    }
}

// The numbers of the first and of the second row in two registers of mixed ones.
INLINE float32x4_t of_first(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}
INLINE float32x4_t of_second(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
}

#include "copied_sums.h"

// The sums, for reading after the last add_products: a row's own numbers.
template <int M, int J>
INLINE CompleteSums<M, J> complete_sums(const Floats (&sums)[M][J]) {
    CompleteSums<M, J> copy = copied_sums(sums); // right for a last row without a neighbour
    for (int j = 0; j < J; ++j) {
        for (int m = 0; m + 1 < M; m += 2) {
            const Floats a = sums[m][j], b = sums[m + 1][j];
            copy.rows[m][j] = {of_first(a.q0, a.q1), of_first(a.q2, a.q3), of_first(b.q0, b.q1), of_first(b.q2, b.q3)};
            copy.rows[m + 1][j] = {of_second(a.q0, a.q1), of_second(a.q2, a.q3), of_second(b.q0, b.q1),
                                   of_second(b.q2, b.q3)};
        }
    }
    return copy;
}

// The first `count` of STRIP numbers of four rows, `stride` apart, four of a column side by side; zeros for the rest and
// for missing rows.
INLINE void interleave(const uint16_t *first, int64_t stride, int num_rows, int count, uint16_t *target) {
    uint16x8x4_t r[2];
    for (int row = 0; row < 4; ++row) {
        const Halves x = load_halves(row < num_rows ? count : 0, first + (row < num_rows ? row * stride : 0));
        r[0].val[row] = x.low;
        r[1].val[row] = x.high;
    }
    vst4q_u16(target, r[0]);
    vst4q_u16(target + 32, r[1]);
}

// Up to sixteen rows of up to sixteen words of four numbers become columns, see transpose_words.
INLINE void pack_words(const uint16_t *source, int64_t stride, int64_t num_rows, int num_words, uint16_t *target,
                       int64_t target_stride) {
    for (int row = 0; row < 16; ++row) {
        const uint16_t *next = source + (row + 16) * stride;
        if (row + 16 < num_rows) __builtin_prefetch(next, 0, 3);
        if (row + 16 < num_rows && num_words > 8) __builtin_prefetch(next + 32, 0, 3);
    }
    for (int row = 0; row < 16; ++row) {
        for (int word = 0; word < num_words; ++word) {
            uint64_t numbers = 0;
            if (row < num_rows) std::memcpy(&numbers, source + row * stride + 4 * word, sizeof(numbers));
            std::memcpy(target + word * target_stride + 4 * row, &numbers, sizeof(numbers));
        }
    }
}
