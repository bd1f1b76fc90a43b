// Sums of products of codes, one panel of outputs after the other.
//
// An instruction multiplies words of four codes, or parts of them. A level's header (int8_pairs256.h, int8_pairs512.h, int8_neon.h, int8_neon_dotprod.h) defines
//     Operand, take_code       a row's code, as it is multiplied
//     Codes, Sums, VECTORS     registers of weights and of sums, and how many take four inputs of a panel
//     ROWS                     rows of a tile
//     zero, load_codes, spread no sums; weights; four codes of a row, for each output
//     add_codes                sum + products
//     store_sums               a panel's sums of one row
// and includes this file at its end.

#pragma once

#include <cstdint>

namespace int8 {
namespace {

constexpr int num_panels(int64_t /*rows*/) { return 1; }

// sums = x . weights: `count` inputs of M rows, and of the sixteen outputs of a panel. Not inlined, so that the sums
// get all registers.
template <int M, int J>
TARGET __attribute__((noinline)) void multiply(const Operand *x, const int8_t *weights, int64_t /*panel_bytes*/,
                                               int64_t count, const int32_t * /*weight_sums*/,
                                               int32_t (&sums)[M][16 * J]) {
    static_assert(J == 1, "panels are multiplied one by one");
    Sums own[M][VECTORS];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) own[m][v] = zero();
    for (const int8_t *end = weights + 16 * count; weights < end; weights += 64, x += 4 * M) {
        Codes codes[VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < VECTORS; ++v) codes[v] = load_codes(weights + v * (64 / VECTORS));
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Codes word = spread(x + 4 * m);
#pragma GCC unroll 8
            for (int v = 0; v < VECTORS; ++v) own[m][v] = add_codes(own[m][v], codes[v], word);
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) store_sums(sums[m], own[m]);
}

} // namespace
} // namespace int8

#include "int8_words.h"
