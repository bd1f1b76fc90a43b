// NEON with SMMLA, for codes of 8 bits; all but those is neon's.
//
// The instruction is written as assembly: nothing else that CPUs with it have is used.

#pragma once

#include "neon.h"

#undef LEVEL_EXPORT
#define LEVEL_EXPORT(name) treeshare_##name##_neon_i8mm

// sum[2 i + j] += rows[i] . columns[j], i and j 0 and 1, of eight codes each.
INLINE void add_products_of_codes(int32x4_t &sum, int8x16_t rows, int8x16_t columns) {
    __asm__(".arch armv8.2-a+i8mm\n\tsmmla %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(rows), "w"(columns));
}
