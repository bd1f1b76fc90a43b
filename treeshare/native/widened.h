// bfloat16 on levels without dot products of it: numbers become float32 as they are packed, and what remains is
// float32's. A level's header includes it at its end.

#pragma once

#include <cstdint>

namespace bfloat16_tiles {
using namespace float32_tiles;
using Operand = float;    // of a dot product's left side
using Packed = float;     // of its right side
constexpr int STEP = 1;   // inputs that add_products takes
constexpr int STRIP = 16; // numbers that `interleave` takes of each row
} // namespace bfloat16_tiles

INLINE void copy_operands(const uint16_t *source, int64_t count, float *target) {
    for (; count >= 16; count -= 16, source += 16, target += 16) store(target, load_bf16(16, source));
    if (count > 0) store_first(count, target, load_bf16(count, source));
}

// bfloat16 as operands, converted into `buffer`.
INLINE const float *as_operands(const uint16_t *source, int64_t count, float *buffer) {
    copy_operands(source, count, buffer);
    return buffer;
}

// The first `count` of STRIP numbers of a row, zeros for the rest.
INLINE void interleave(const uint16_t *first, int64_t /*stride*/, int /*num_rows*/, int count, float *target) {
    store(target, load_bf16(count, first));
}
