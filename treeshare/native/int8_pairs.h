// Products of codes with VPMADDWD, which multiplies numbers of 16 bits and adds two neighbouring products, exactly; the
// instruction for 8 bits, VPMADDUBSW, saturates. Weights are widened as they are read, a row's codes once.
//
// A sum has two halves, of the first two inputs of each word and of its last two, side by side; they are added at the
// end. A level's header for it (int8_pairs256.h, int8_pairs512.h) defines
//     Vector, VECTORS, ROWS    numbers of 16 bits, and how many take four inputs of a panel; rows of a tile
//     zero, widen, spread      no sums; codes; four codes of a row, for each output
//     add_pairs                sum + a * b, of neighbours
//     store_halves             a panel's sums

#pragma once

#include <cstdint>

namespace int8 {
namespace {

using Operand = int16_t;
constexpr int num_panels(int64_t /*rows*/) { return 1; }

INLINE Operand take_code(int8_t code) { return code; }

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of a panel. Not inlined, so that the sums
// get all registers.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Operand *x, const int8_t *weights, int64_t /*panel_bytes*/,
                                               int64_t count, const int32_t * /*weight_sums*/,
                                               int32_t (&sums)[M][16 * J]) {
    static_assert(J == 1, "panels are multiplied one by one");
    Vector own[M][VECTORS];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) own[m][v] = zero();
    for (const int8_t *end = weights + 16 * count; weights < end; weights += 64, x += 4 * M) {
        Vector codes[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) codes[v] = widen(weights + v * (64 / VECTORS));
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Vector word = spread(x + 4 * m);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; ++v) own[m][v] = add_pairs(own[m][v], codes[v], word);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) store_halves(sums[m], own[m]);
}

} // namespace
} // namespace int8

#include "int8_words.h"
