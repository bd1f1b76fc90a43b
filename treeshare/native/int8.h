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

// Mixes blocks of `width` numbers, in place; `count` is a multiple of 16, and zeros fill it up. It is its own inverse.
TARGET void transform(float *numbers, int64_t count, int64_t width) {
    if (width <= 1) return;
    const Floats factor = broadcast(1.0f / std::sqrt(static_cast<float>(width)));
    for (int64_t i = 0; i < count; i += 16) {
        Floats x = mul(load(numbers + i), factor);
        x = mix_lanes<1>(x);
        if (width > 2) x = mix_lanes<2>(x);
        if (width > 4) x = mix_lanes<4>(x);
        if (width > 8) x = mix_lanes<8>(x);
        store(numbers + i, x);
    }
    for (int64_t distance = 16; distance < width; distance *= 2) {
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

INLINE Floats absolute(Floats x) { return max(x, sub(broadcast(0.0f), x)); }

// The largest magnitude; NaN where a number is infinite or NaN.
TARGET float largest_of(const float *numbers, int64_t count) {
    Floats largest = broadcast(0.0f), zeros = broadcast(0.0f);
    for (int64_t i = 0; i < count; i += 16) {
        const Floats x = load(numbers + i);
        largest = max(largest, absolute(x));
        zeros = add(zeros, sub(x, x));
    }
    return sum_lanes(zeros) == 0.0f ? max_lanes(largest) : NAN;
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
