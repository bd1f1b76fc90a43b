// float32 as the element of the kernels: nothing is converted or rounded. See bfloat16.h.

#pragma once

#include <algorithm>
#include <cstdint>

#define EXPORT(name) LEVEL_EXPORT(name##_float32)

using namespace float32_tiles;

using Element = float;
using Operand = float;
using Packed = float;
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

// The first `count` of STRIP numbers of a row, zeros for the rest.
INLINE void interleave(const Element *first, int64_t /*stride*/, int /*num_rows*/, int count, Element *target) {
    store(target, load_first(count, first));
}

// Up to sixteen rows of up to sixteen numbers become columns, see transpose_words.
INLINE void pack_words(const float *source, int64_t stride, int64_t num_rows, int num_words, float *target,
                       int64_t target_stride) {
    transpose_words(reinterpret_cast<const uint32_t *>(source), stride, num_rows, num_words, reinterpret_cast<uint32_t *>(target), target_stride);
}
