// Numbers as codes of 8 bits with scales, and back; structs.h has the layout.
//
// A row, of activations or of weights, is transformed first: neighbouring inputs are mixed by an orthogonal matrix, so
// that large numbers are spread over many inputs. x . w = (T x) . (T w), and so it need not be undone. T is diagonal in
// blocks, each a Hadamard matrix: all its entries are 1 or -1, divided by the root of their number. Then a group's
// largest magnitude becomes 127, and the others become whole numbers beside it, ties to even.
//
// Every level gives the same bits: the order of additions is fixed here, and each operation is rounded once.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace int8 {
namespace {

constexpr int64_t UNIT = 64;       // inputs are padded to a multiple of it
constexpr int64_t PANEL = 16;      // outputs side by side
constexpr int64_t WORD = 4;        // inputs side by side
constexpr float LARGEST = 127.0f;  // code
constexpr float TINY = 0x1p-100f;  // a group without a larger number is zero: so no scale or quotient is out of range

constexpr int64_t round_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// The sizes of a layer's memory.
struct Shape {
    int64_t inputs, outputs, group, groups; // padded

    explicit Shape(const Int8Linear &linear)
        : inputs(round_up(linear.num_inputs, UNIT)), outputs(round_up(linear.num_outputs, PANEL)),
          group(std::min(linear.group, inputs)), groups((inputs + group - 1) / group) {}
    int64_t panel_bytes() const { return inputs * PANEL; }
};

char *row_of(const Buffer &buffer, int64_t row, int64_t size) {
    return reinterpret_cast<char *>(buffer.address) + row * buffer.row_stride * size;
}
char *codes_of(const Buffer &rows, int64_t row) { return row_of(rows, row, sizeof(float)); }

// A row of float32 or elements; nothing beyond `left` is touched.
INLINE Floats load_number(const Buffer &buffer, int64_t row, int64_t i, int64_t left) {
    if (buffer.is_float32) return load_first(left, reinterpret_cast<float *>(row_of(buffer, row, sizeof(float))) + i);
    return load_elements(left, reinterpret_cast<Element *>(row_of(buffer, row, sizeof(Element))) + i);
}
INLINE void store_number(const Buffer &buffer, int64_t row, int64_t i, int64_t left, Floats x) {
    if (buffer.is_float32)
        store_first(left, reinterpret_cast<float *>(row_of(buffer, row, sizeof(float))) + i, x);
    else
        store_elements(left, reinterpret_cast<Element *>(row_of(buffer, row, sizeof(Element))) + i, x);
}

template <int DISTANCE>
struct Signs { // of lanes: those that get a difference have -1
    float of[16];
    constexpr Signs() : of() {
        for (int i = 0; i < 16; ++i) of[i] = i & DISTANCE ? -1.0f : 1.0f;
    }
};

// Lanes that are DISTANCE apart become their sum, at the first, and their difference.
template <int DISTANCE>
INLINE Floats mix_lanes(Floats x) {
    static constexpr Signs<DISTANCE> SIGNS;
    return add(swap_lanes<DISTANCE>(x), mul(x, load(SIGNS.of)));
}

// The stages of a block of 64, from neighbours on: all that a narrower transform has.
INLINE void mix_block(float *numbers, int64_t width, Floats factor) {
    Floats x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        x[i] = mix_lanes<1>(mul(load(numbers + 16 * i), factor));
        if (width > 2) x[i] = mix_lanes<2>(x[i]);
        if (width > 4) x[i] = mix_lanes<4>(x[i]);
        if (width > 8) x[i] = mix_lanes<8>(x[i]);
    }
    if (width > 16) {
        const Floats a = x[0], b = x[2];
        x[0] = add(a, x[1]);
        x[1] = sub(a, x[1]);
        x[2] = add(b, x[3]);
        x[3] = sub(b, x[3]);
    }
    if (width > 32) {
        const Floats a = x[0], b = x[1];
        x[0] = add(a, x[2]);
        x[1] = add(b, x[3]);
        x[2] = sub(a, x[2]);
        x[3] = sub(b, x[3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) store(numbers + 16 * i, x[i]);
}

// Mixes blocks of `width` numbers, in place; `count` is a multiple of 64, and zeros fill it up. It is its own inverse.
TARGET void transform(float *numbers, int64_t count, int64_t width) {
    if (width <= 1) return;
    const Floats factor = broadcast(1.0f / std::sqrt(static_cast<float>(width)));
    for (int64_t i = 0; i < count; i += UNIT) mix_block(numbers + i, width, factor);
    for (int64_t distance = UNIT; distance < width; distance *= 2) {
        for (int64_t first = 0; first < count; first += 2 * distance) {
            for (float *low = numbers + first, *high = low + distance; low < numbers + first + distance;
                 low += 16, high += 16) {
                const Floats a = load(low), b = load(high);
                store(low, add(a, b));
                store(high, sub(a, b));
            }
        }
    }
}

// The largest magnitude; NaN where a number is infinite or NaN. Four numbers at a time: an addition takes a while.
TARGET float largest_of(const float *numbers, int64_t count) {
    const Floats zero = broadcast(0.0f);
    Floats largest[4] = {zero, zero, zero, zero}, zeros[4] = {zero, zero, zero, zero};
    for (int64_t i = 0; i < count; i += UNIT) {
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) {
            const Floats x = load(numbers + i + 16 * k);
            largest[k] = max(largest[k], absolute(x));
            zeros[k] = add(zeros[k], sub(x, x));
        }
    }
    const Floats all = add(add(zeros[0], zeros[1]), add(zeros[2], zeros[3]));
    if (sum_lanes(all) != 0.0f) return NAN;
    return max_lanes(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
}

// A group's numbers as codes; returns their scale: NaN, which no result survives, for one that is not finite.
TARGET float encode(const float *numbers, int64_t count, int8_t *codes) {
    const float largest = largest_of(numbers, count);
    if (!(largest >= TINY)) {
        std::fill_n(codes, count, 0);
        return largest < TINY ? 0.0f : NAN;
    }
    const Floats factor = broadcast(LARGEST / largest);
    for (int64_t i = 0; i < count; i += 16) store_codes(codes + i, round_whole(mul(load(numbers + i), factor)));
    return largest / LARGEST;
}

// A row's numbers, with zeros up to the padded inputs, become codes and scales; they are overwritten.
TARGET void quantize(const Int8Linear &linear, const Shape &shape, float *numbers, char *row) {
    transform(numbers, shape.inputs, linear.transform);
    int8_t *codes = reinterpret_cast<int8_t *>(row);
    float *scales = reinterpret_cast<float *>(row + shape.inputs);
    for (int64_t first = 0; first < shape.inputs; first += shape.group)
        *scales++ = encode(numbers + first, std::min(shape.group, shape.inputs - first), codes + first);
}

// A thread's memory for the numbers of a row.
inline float *numbers_of(const Shape &shape) {
    static thread_local Scratch scratch;
    return reinterpret_cast<float *>(scratch.reserve(shape.inputs * sizeof(float)));
}

} // namespace
} // namespace int8
