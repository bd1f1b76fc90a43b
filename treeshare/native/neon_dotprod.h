// NEON with SDOT, for codes of 8 bits; all but those is neon's.
//
// The instruction is written as assembly: nothing else that CPUs with it have is used.

#pragma once

#include "neon.h"

#undef LEVEL_EXPORT
#define LEVEL_EXPORT(name) treeshare_##name##_neon_dotprod

// sum[i] += four codes of a . four of b, i from 0 to 3.
INLINE void add_dots(int32x4_t &sum, int8x16_t a, int8x16_t b) {
    __asm__(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(a), "w"(b));
}
