// A decoder layer of the Llama shape without its attention: RMS norms, residuals, rotary positions, gated
// activation and the matmuls between them. Every intermediate result that transformers' model code stores is rounded
// to the element here too, so only the order of a sum and the exponential differ from it. Rows
// never mix. Each half of a layer is one parallel region: its threads wait for one another inside it, and need not be
// woken for each part.

#pragma once

#include <cmath>
#include <cstdint>

#include "common.h"
#ifdef HAS_TILES
#include "tile_linear.h"
#else
#include "linear.h"
#endif

namespace layers {

namespace {

enum Part { MATMUL, REST };

TARGET void norm_row(const Element *x, const Element *weight, Element *out, int64_t width, float epsilon) {
    Floats squares = broadcast(0.0f);
    for (int64_t i = 0; i < width; i += 16) {
        const Floats value = load_elements(width - i, x + i);
        squares = mul_add(value, value, squares);
    }
    const Floats factor = broadcast(1.0f / std::sqrt(sum_lanes(squares) / width + epsilon));
    for (int64_t i = 0; i < width; i += 16) {
        const int64_t left = width - i;
        const Floats normal = round_to_element(mul(load_elements(left, x + i), factor));
        store_elements(left, out + i, mul(normal, load_elements(left, weight + i)));
    }
}

TARGET void add_row(Element *x, const Element *delta, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) {
        const int64_t left = width - i;
        store_elements(left, x + i, add(load_elements(left, x + i), load_elements(left, delta + i)));
    }
}

// Rotary positions of a head, whose halves are x1 and x2: (x1, x2) * cos + (-x2, x1) * sin.
TARGET void rotate_head(Element *x, const Element *cosine, const Element *sine, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const int64_t left = half - i;
        const Floats low = load_elements(left, x + i), high = load_elements(left, x + half + i);
        const Floats turned_low = round_to_element(mul(high, load_elements(left, sine + i)));
        const Floats turned_high = round_to_element(mul(low, load_elements(left, sine + half + i)));
        const Floats kept_low = round_to_element(mul(low, load_elements(left, cosine + i)));
        const Floats kept_high = round_to_element(mul(high, load_elements(left, cosine + half + i)));
        store_elements(left, x + i, sub(kept_low, turned_low));
        store_elements(left, x + half + i, add(kept_high, turned_high));
    }
}

TARGET void silu_mul_row(const Element *gate, const Element *up, Element *out, int64_t width) {
    const Floats one = broadcast(1.0f), minus_log2e = broadcast(-1.44269504f);
    const Floats largest = broadcast(200.0f); // its power is infinite, and the activation zero
    for (int64_t i = 0; i < width; i += 16) {
        const int64_t left = width - i;
        const Floats value = load_elements(left, gate + i);
        const Floats power = exp2_lanes<EXP2_DEGREE>(min(mul(value, minus_log2e), largest));
        const Floats silu = round_to_element(div(value, add(one, power)));
        store_elements(left, out + i, mul(silu, load_elements(left, up + i)));
    }
}

// Every thread of a parallel region calls the following functions; all have finished when one returns.

// out = x / rms(x) * weight
void norm_rows(const Element *x, const Norm<Element> &norm, Element *out, int64_t num_rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
        norm_row(x + row * width, norm.weight, out + row * width, width, norm.epsilon);
}

// x += delta; out = x / rms(x) * weight
void add_norm_rows(Element *x, const Element *delta, const Norm<Element> &norm, Element *out, int64_t num_rows,
                   int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
        add_row(x + row * width, delta + row * width, width);
        norm_row(x + row * width, norm.weight, out + row * width, width, norm.epsilon);
    }
}

void add_rows(Element *x, const Element *delta, int64_t num_rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) add_row(x + row * width, delta + row * width, width);
}

// Rotary positions in place: x [num_rows][stride] begins with num_heads heads; cosine, sine [num_rows][head_dim]
void rotate_rows(Element *x, const Element *cosine, const Element *sine, int64_t num_rows, int64_t stride,
                 int64_t num_heads, int64_t head_dim) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t head = 0; head < num_heads; ++head)
            rotate_head(x + row * stride + head * head_dim, cosine + row * head_dim, sine + row * head_dim, head_dim);
}

// out = silu(gate) * up: gate_up [num_rows][2 * width], gate first; out [num_rows][width]
void silu_mul_rows(const Element *gate_up, Element *out, int64_t num_rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
        silu_mul_row(gate_up + 2 * row * width, gate_up + (2 * row + 1) * width, out + row * width, width);
}

void linear_timed(const Linear<Element> &layer, const Element *x, Element *out, int64_t num_rows, Laps &laps) {
    laps.lap(REST);
    linear::apply(layer, x, out, num_rows);
    laps.lap(MATMUL);
}

} // namespace

extern "C" void EXPORT(before_attention)(const Layer<Element> *layer, const Activations<Element> *activations) {
    const Layer<Element> &l = *layer;
    const Activations<Element> &a = *activations;
#pragma omp parallel
    {
        Laps laps(l.nanoseconds);
        norm_rows(a.x, l.first, a.normal, a.num_rows, l.qkv.num_inputs);
        linear_timed(l.qkv, a.normal, a.qkv, a.num_rows, laps);
        rotate_rows(a.qkv, a.cosine, a.sine, a.num_rows, l.qkv.num_outputs, l.num_rotated_heads, l.head_dim);
        laps.lap(REST);
    }
}

extern "C" void EXPORT(after_attention)(const Layer<Element> *layer, const Activations<Element> *activations) {
    const Layer<Element> &l = *layer;
    const Activations<Element> &a = *activations;
    const int64_t width = l.out.num_outputs;
#pragma omp parallel
    {
        Laps laps(l.nanoseconds);
        linear_timed(l.out, a.attended, a.delta, a.num_rows, laps);
        add_norm_rows(a.x, a.delta, l.second, a.normal, a.num_rows, width);
        linear_timed(l.gate_up, a.normal, a.gate_up, a.num_rows, laps);
        silu_mul_rows(a.gate_up, a.gated, a.num_rows, l.down.num_inputs);
        linear_timed(l.down, a.gated, a.delta, a.num_rows, laps);
        add_rows(a.x, a.delta, a.num_rows, width);
        laps.lap(REST);
    }
}

extern "C" void EXPORT(rms_norm)(const Element *x, const Element *weight, Element *out, int64_t num_rows,
                                 int64_t width, float epsilon) {
#pragma omp parallel
    norm_rows(x, {weight, epsilon}, out, num_rows, width);
}

extern "C" void EXPORT(add_rms_norm)(Element *x, const Element *delta, const Element *weight, Element *out,
                            int64_t num_rows, int64_t width, float epsilon) {
#pragma omp parallel
    add_norm_rows(x, delta, {weight, epsilon}, out, num_rows, width);
}

extern "C" void EXPORT(rotate)(Element *x, const Element *cosine, const Element *sine, int64_t num_rows,
                               int64_t stride, int64_t num_heads, int64_t head_dim) {
#pragma omp parallel
    rotate_rows(x, cosine, sine, num_rows, stride, num_heads, head_dim);
}

extern "C" void EXPORT(silu_mul)(const Element *gate_up, Element *out, int64_t num_rows, int64_t width) {
#pragma omp parallel
    silu_mul_rows(gate_up, out, num_rows, width);
}

} // namespace layers
