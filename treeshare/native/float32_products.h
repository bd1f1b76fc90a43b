// Dot products of float32, on every level: a product is a multiplication and an addition that are rounded once.

#pragma once

#include <cstdint>

INLINE void store_operands(float *target, Floats x) { store(target, x); }

// sums[m][j] += a[m] . b[j]: one number of M rows, `stride` apart, and J vectors of sixteen.
template <int M, int J>
INLINE void add_products(Floats (&sums)[M][J], const float *a, int64_t stride, const float *b) {
    Floats vectors[J];
    for (int j = 0; j < J; ++j) vectors[j] = load(b + 16 * j);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
        const Floats number = broadcast(a[m * stride]);
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) accumulate(sums[m][j], number, vectors[j]);
    }
}
