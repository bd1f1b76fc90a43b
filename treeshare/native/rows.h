// What a decoder layer computes between its matmuls and attention, a row at a time: norms, rotary positions, activations,
// sums. Every intermediate result that transformers' model code stores is rounded to the element here too, so only the
// order of a sum and the exponential differ from it. Rows never mix.
//
// A new operation: its name in OPERATION_KINDS, its function here, its case in compute_row; then its name in
// models/trace.py, or in models/recipe.py if it replaces several operations of a layer.

#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"
#include "int8.h"

namespace rows {
namespace {

// Where an operand's numbers of one row are. Numbers that stay within a row are float32, rounded or not.
struct Numbers {
    char *data;
    int64_t group_bytes; // from group to group
    bool is_float32;
};

// The operands of an operation in one row.
struct Row {
    Numbers a, b, c, out;
    bool has_b;
};

INLINE Numbers group_of(const Numbers &numbers, int64_t group) {
    return {numbers.data + group * numbers.group_bytes, 0, numbers.is_float32};
}
INLINE Floats read(const Numbers &numbers, int64_t left, int64_t i) {
    if (numbers.is_float32) return load_first(left, reinterpret_cast<const float *>(numbers.data) + i);
    return load_elements(left, reinterpret_cast<const Element *>(numbers.data) + i);
}
INLINE void write(const Numbers &numbers, int64_t left, int64_t i, Floats x, bool is_rounded) {
    if (numbers.is_float32)
        store_first(left, reinterpret_cast<float *>(numbers.data) + i, is_rounded ? round_to_element(x) : x);
    else
        store_elements(left, reinterpret_cast<Element *>(numbers.data) + i, x);
}
INLINE Floats rounded_if(bool is_rounded, Floats x) { return is_rounded ? round_to_element(x) : rounded_once(x); }

// A norm's result: (x - mean) * factor, times weight, plus bias.
TARGET void write_normal(const Operation<Element> &op, const Numbers &a, const Numbers &out, float mean, float factor) {
    const bool rounds = op.flags & ROUND, rounds_inner = op.flags & ROUND_INNER;
    const Floats means = broadcast(mean), factors = broadcast(factor), one = broadcast(1.0f);
    for (int64_t i = 0; i < op.width; i += 16) {
        const int64_t left = op.width - i;
        Floats normal = read(a, left, i);
        if (op.kind == LAYER_NORM) normal = sub(normal, means);
        normal = rounded_if(rounds_inner, mul(normal, factors));
        if (op.linear.weight) {
            const Floats weight = load_elements(left, op.linear.weight + i);
            normal = rounded_once(mul(normal, op.flags & PLUS_ONE ? add(weight, one) : weight));
        }
        if (op.linear.bias) normal = add(normal, load_elements(left, op.linear.bias + i));
        write(out, left, i, normal, rounds);
    }
}

TARGET void norm_group(const Operation<Element> &op, const Numbers &a, const Numbers &out) {
    float mean = 0.0f;
    if (op.kind == LAYER_NORM) {
        Floats sums = broadcast(0.0f);
        for (int64_t i = 0; i < op.width; i += 16) sums = add(sums, read(a, op.width - i, i));
        mean = sum_lanes(sums) / op.width;
    }
    Floats squares = broadcast(0.0f);
    for (int64_t i = 0; i < op.width; i += 16) {
        const int64_t left = op.width - i;
        Floats value = read(a, left, i);
        if (op.kind == LAYER_NORM) value = only(first16(left), sub(value, broadcast(mean)));
        squares = mul_add(value, value, squares);
    }
    const float factor = 1.0f / std::sqrt(sum_lanes(squares) / op.width + static_cast<float>(op.number));
    write_normal(op, a, out, mean, factor);
}

// x * cos + turned(x) * sin. A head's halves (x1, x2) are turned to (-x2, x1); FLIP: to (x2, -x1).
TARGET void rotate_halves(const Operation<Element> &op, const Row &part) {
    const bool rounds = op.flags & ROUND, rounds_inner = op.flags & ROUND_INNER, flips = op.flags & FLIP;
    const int64_t half = op.width / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const int64_t left = half - i;
        const Floats low = read(part.a, left, i), high = read(part.a, left, half + i);
        const Floats turned_low = rounded_if(rounds_inner, mul(high, read(part.c, left, i)));
        const Floats turned_high = rounded_if(rounds_inner, mul(low, read(part.c, left, half + i)));
        const Floats kept_low = rounded_if(rounds_inner, mul(low, read(part.b, left, i)));
        const Floats kept_high = rounded_if(rounds_inner, mul(high, read(part.b, left, half + i)));
        write(part.out, left, i, flips ? add(kept_low, turned_low) : sub(kept_low, turned_low), rounds);
        write(part.out, left, half + i, flips ? sub(kept_high, turned_high) : add(kept_high, turned_high), rounds);
    }
}

// The same for neighbours (x1, x2), (x3, x4), ...: turned to (-x2, x1), (-x4, x3), ... A neighbour is read from memory, one
// number further on or back.
TARGET void rotate_pairs(const Operation<Element> &op, const Row &part) {
    constexpr int64_t LONGEST = 512, SPACE = 16;
    static const float ODD[16] = {0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1};
    const bool rounds = op.flags & ROUND, rounds_inner = op.flags & ROUND_INNER;
    const Mask is_odd = greater(load(ODD), broadcast(0.0f));
    alignas(64) float numbers[SPACE + LONGEST + SPACE];
    store(numbers, broadcast(0.0f));
    for (int64_t first = 0; first < op.width; first += LONGEST) {
        const int64_t count = op.width - first < LONGEST ? op.width - first : LONGEST;
        for (int64_t i = 0; i < count; i += 16)
            store(numbers + SPACE + i, read(part.a, count - i, first + i));
        store(numbers + SPACE + (count + 15) / 16 * 16, broadcast(0.0f));
        for (int64_t i = 0; i < count; i += 16) {
            const int64_t left = count - i;
            const float *x = numbers + SPACE + i;
            const Floats turned = select_lanes(is_odd, load(x - 1), sub(broadcast(-0.0f), load(x + 1)));
            const Floats kept = rounded_if(rounds_inner, mul(load(x), read(part.b, left, first + i)));
            const Floats moved = rounded_if(rounds_inner, mul(turned, read(part.c, left, first + i)));
            write(part.out, left, first + i, add(kept, moved), rounds);
        }
    }
}

// x / (1 + exp(-slope)): for any slope, infinite ones included.
INLINE Floats gated_by(Floats x, Floats slope) {
    const Floats largest = broadcast(200.0f); // its power is infinite, and the result zero
    const Floats power = exp2_lanes<EXP2_DEGREE>(min(mul(slope, broadcast(-1.44269504f)), largest));
    return div(x, add(broadcast(1.0f), power));
}

// The complementary error function for x >= 0, with a relative error of 1.2e-7: Press et al., Numerical Recipes, erfcc.
INLINE Floats erfc_positive(Floats x) {
    static const float COEFFICIENTS[] = {-0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                                         0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
    const Floats t = div(broadcast(1.0f), mul_add(broadcast(0.5f), x, broadcast(1.0f)));
    Floats y = broadcast(0.17087277f);
    for (float coefficient : COEFFICIENTS) y = mul_add(y, t, broadcast(coefficient));
    return mul(t, exp_any(sub(y, mul(x, x))));
}

INLINE Floats gelu(Floats x) { // x times the normal distribution's share below x
    const Floats half = broadcast(0.5f), square = mul(x, x), size = absolute(x);
    const Floats half_tail = mul(half, erfc_positive(mul(size, broadcast(0.70710678f))));
    const Floats share = select_lanes(greater(x, broadcast(0.0f)), sub(broadcast(1.0f), half_tail), half_tail);
    Floats series = broadcast(-0.00118732822f); // 1/2 + (x - x^3 / 6 + ...) / sqrt(2 pi): better near zero
    for (float coefficient : {0.00997355701f, -0.0664903801f, 0.398942280f})
        series = mul_add(series, square, broadcast(coefficient));
    return mul(x, select_lanes(greater(broadcast(0.3f), size), mul_add(series, x, half), share));
}

constexpr float GELU_FACTOR = 0.7978845608f, GELU_CUBE = 0.044715f;

INLINE Floats gelu_tanh(Floats x) { // x / 2 * (1 + tanh(u)) = x / (1 + exp(-2 u))
    const Floats cube = mul(mul(x, x), x);
    return gated_by(x, mul(broadcast(2.0f * GELU_FACTOR), mul_add(broadcast(GELU_CUBE), cube, x)));
}

INLINE Floats expm1_lanes(Floats x) {
    Floats series = broadcast(1.0f / 720); // near zero the other form cancels
    for (float coefficient : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f}) series = mul_add(series, x, broadcast(coefficient));
    const Floats small = mul_add(mul(series, x), x, x);
    return select_lanes(greater(broadcast(0.25f), absolute(x)), small, sub(exp_any(x), broadcast(1.0f)));
}

// transformers' gelu_new, whose model code stores every step.
INLINE Floats gelu_new(Floats x) {
    const Floats cube = round_to_element(mul(mul(x, x), x));
    const Floats inner = round_to_element(add(x, round_to_element(mul(cube, broadcast(GELU_CUBE)))));
    const Floats bent = round_to_element(tanh_lanes(round_to_element(mul(inner, broadcast(GELU_FACTOR)))));
    const Floats half = round_to_element(mul(x, broadcast(0.5f)));
    return mul(half, round_to_element(add(bent, broadcast(1.0f))));
}

// An activation, or another function of one number.
template <int64_t KIND>
INLINE Floats function_of(Floats x) {
    if constexpr (KIND == SILU) return gated_by(x, x);
    if constexpr (KIND == SIGMOID) return gated_by(broadcast(1.0f), x);
    if constexpr (KIND == GELU) return gelu(x);
    if constexpr (KIND == GELU_TANH) return gelu_tanh(x);
    if constexpr (KIND == GELU_NEW) return gelu_new(x);
    if constexpr (KIND == RELU) return max(broadcast(0.0f), x); // in this order, so that NaN stays
    if constexpr (KIND == SQUARE) return mul(x, x);
    if constexpr (KIND == CUBE) return mul(mul(x, x), x);
    if constexpr (KIND == TANH) return tanh_lanes(x);
    if constexpr (KIND == EXPM1) return expm1_lanes(x);
    if constexpr (KIND == NEGATE) return sub(broadcast(-0.0f), x);
    return x; // COPY
}

// out = f(a), times b where there is a b.
template <int64_t KIND>
TARGET void function_group(const Operation<Element> &op, const Row &part) {
    const bool rounds = op.flags & ROUND, rounds_inner = op.flags & ROUND_INNER;
    for (int64_t i = 0; i < op.width; i += 16) {
        const int64_t left = op.width - i;
        Floats y = function_of<KIND>(read(part.a, left, i));
        if (part.has_b) y = mul(rounded_if(rounds_inner, y), read(part.b, left, i));
        write(part.out, left, i, y, rounds);
    }
}

// out = a and b, which is an operand, a weight for each column, or a number.
template <int64_t KIND>
TARGET void pair_group(const Operation<Element> &op, const Row &part) {
    const bool rounds = op.flags & ROUND;
    const Floats number = broadcast(static_cast<float>(op.number));
    for (int64_t i = 0; i < op.width; i += 16) {
        const int64_t left = op.width - i;
        const Floats x = read(part.a, left, i);
        Floats y = number;
        if (part.has_b)
            y = read(part.b, left, i);
        else if (op.linear.weight)
            y = load_elements(left, op.linear.weight + i);
        Floats result = x;
        if constexpr (KIND == ADD) result = add(x, y);
        if constexpr (KIND == SUBTRACT) result = sub(x, y);
        if constexpr (KIND == MULTIPLY) result = mul(x, y);
        if constexpr (KIND == MINIMUM) result = min(y, x); // in this order, so that NaN stays
        if constexpr (KIND == MAXIMUM) result = max(y, x);
        if constexpr (KIND == GREATER) result = select_lanes(greater(x, y), broadcast(1.0f), broadcast(0.0f));
        if constexpr (KIND == SELECT) result = select_lanes(greater(x, broadcast(0.0f)), y, read(part.c, left, i));
        write(part.out, left, i, result, rounds);
    }
}

// A row's codes and scales, which a linear layer reads: out is memory for them, see Int8Linear.
TARGET void quantize_row(const Int8Linear &linear, const Row &row) {
    const int8::Shape shape(linear);
    float *numbers = int8::numbers_of(shape);
    for (int64_t i = 0; i < shape.inputs; i += 16) store(numbers + i, read(row.a, linear.num_inputs - i, i));
    int8::quantize(linear, shape, numbers, row.out.data);
}

// One operation in one row.
TARGET void compute_row(const Operation<Element> &op, const Row &row) {
#define FUNCTION(KIND)                                                                                                 \
    case KIND: function_group<KIND>(op, part); break
#define PAIR(KIND)                                                                                                     \
    case KIND: pair_group<KIND>(op, part); break
    for (int64_t group = 0; group < op.groups; ++group) {
        const Row part = {group_of(row.a, group), group_of(row.b, group), group_of(row.c, group),
                          group_of(row.out, group), row.has_b};
        switch (op.kind) {
        case QUANTIZE: quantize_row(*op.int8, part); break;
        case RMS_NORM:
        case LAYER_NORM: norm_group(op, part.a, part.out); break;
        case ROTATE_HALVES: rotate_halves(op, part); break;
        case ROTATE_PAIRS: rotate_pairs(op, part); break;
            FUNCTION(COPY);
            FUNCTION(SILU);
            FUNCTION(SIGMOID);
            FUNCTION(GELU);
            FUNCTION(GELU_TANH);
            FUNCTION(GELU_NEW);
            FUNCTION(RELU);
            FUNCTION(SQUARE);
            FUNCTION(CUBE);
            FUNCTION(TANH);
            FUNCTION(EXPM1);
            FUNCTION(NEGATE);
            PAIR(ADD);
            PAIR(SUBTRACT);
            PAIR(MULTIPLY);
            PAIR(MINIMUM);
            PAIR(MAXIMUM);
            PAIR(GREATER);
            PAIR(SELECT);
        }
    }
#undef FUNCTION
#undef PAIR
}

} // namespace
} // namespace rows
