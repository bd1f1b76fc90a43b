// bfloat16 as the element of the kernels. A source includes a level's header, then an element's, then the kernels;
// level.h lists what both define.

#pragma once

#include <cstdint>

#define EXPORT(name) LEVEL_EXPORT(name##_bfloat16)

using namespace bfloat16_tiles;

using Element = uint16_t;
constexpr Element ONE = 0x3f80; // the number 1
constexpr int64_t LINEAR_RUN = INT64_MAX; // one running sum: its error does not show beside a rounding to bfloat16
constexpr int EXP2_DEGREE = 5;

INLINE Floats load_elements(int64_t count, const Element *source) { return load_bf16(count, source); }
INLINE void store_elements(int64_t count, Element *target, Floats x) { store_bf16(count, target, x); }
INLINE Floats round_to_element(Floats x) { return round_bf16(x); }
