// float32 as the element of the kernels: nothing is converted or rounded. A product is a multiplication and an
// addition that are rounded once, on every level. See bfloat16.h.

#pragma once

#include <algorithm>
#include <cstdint>

#define EXPORT(name) LEVEL_EXPORT(name##_float32)

using namespace float32_tiles;

using Element = float;
using Operand = float;
constexpr int STEP = 1; // inputs that add_products takes
constexpr int STRIP = 16;
constexpr Element ONE = 1.0f;
constexpr int64_t LINEAR_RUN = 256; // words: sums as good as those of matmul libraries
constexpr int EXP2_DEGREE = 7;

INLINE Floats load_elements(int64_t count, const Element *source) { return load_first(count, source); }
INLINE void store_elements(int64_t count, Element *target, Floats x) { store_first(count, target, x); }
INLINE Floats round_to_element(Floats x) { return rounded_once(x); }

INLINE void copy_operands(const Element *source, int64_t count, Operand *target) {
    std::copy_n(source, count, target);
}
INLINE const Operand *as_operands(const Element *source, int64_t /*count*/, Operand * /*buffer*/) { return source; }

// sums[m][j] += a[m] . b[j]: one number of M rows, `stride` apart, and J vectors of sixteen.
template <int M, int J>
INLINE void add_products(Floats (&sums)[M][J], const Operand *a, int64_t stride, const Element *b) {
    Floats vectors[J];
    for (int j = 0; j < J; ++j) vectors[j] = load(b + 16 * j);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Floats number = broadcast(a[m * stride]);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) accumulate(sums[m][j], number, vectors[j]);
    }
}

// The first `count` of STRIP numbers of a row, zeros for the rest.
INLINE void interleave(const Element *first, int64_t /*stride*/, int /*num_rows*/, int count, Element *target) {
    store(target, load_first(count, first));
}
