// A decoder layer of the Llama shape without its attention: RMS norms, residuals, rotary positions, gated
// activation and the matmuls between them. bfloat16; every intermediate result that transformers' model code
// stores in bfloat16 is rounded here too, so only the order of a sum and the exponential differ from it. Rows
// never mix. The two halves of a layer are one parallel region each: threads meet inside it without being woken.

#include <cstdint>

struct Layer;
struct Activations;

extern "C" {
void treeshare_before_attention(const Layer *, const Activations *);
void treeshare_after_attention(const Layer *, const Activations *);
void treeshare_rms_norm(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t num_rows, int64_t width,
                        float epsilon);
void treeshare_add_rms_norm(uint16_t *x, const uint16_t *delta, const uint16_t *weight, uint16_t *out,
                            int64_t num_rows, int64_t width, float epsilon);
void treeshare_rotate(uint16_t *x, const uint16_t *cosine, const uint16_t *sine, int64_t num_rows, int64_t stride,
                      int64_t num_heads, int64_t head_dim);
void treeshare_silu_mul(const uint16_t *gate_up, uint16_t *out, int64_t num_rows, int64_t width);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include "common.h"

#include <cmath>

struct Norm {
    const uint16_t *weight;
    double epsilon;
};

struct Layer {
    Linear qkv, out, gate_up, down; // q, k, v and gate, up side by side
    Norm first, second;
    int64_t num_rotated_heads, head_dim; // q and k
    int64_t *nanoseconds;                // [2], added to: matmuls, the rest; or null: not measured
};

// What flows through a layer; [num_rows][.] each, `x` in and out.
struct Activations {
    int64_t num_rows;
    const uint16_t *cosine, *sine, *attended;
    uint16_t *x, *normal, *qkv, *gate_up, *gated, *delta;
};

namespace {

enum Part { MATMUL, REST };

TARGET void norm_row(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t width, float epsilon) {
    __m512 squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 value = load_bf16(first16(width - i), x + i);
        squares = _mm512_fmadd_ps(value, value, squares);
    }
    const __m512 factor = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / width + epsilon));
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = first16(width - i);
        const __m512 normal = round_bf16(_mm512_mul_ps(load_bf16(mask, x + i), factor));
        store_bf16(mask, out + i, _mm512_mul_ps(normal, load_bf16(mask, weight + i)));
    }
}

TARGET void add_row(uint16_t *x, const uint16_t *delta, int64_t width) {
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = first16(width - i);
        store_bf16(mask, x + i, _mm512_add_ps(load_bf16(mask, x + i), load_bf16(mask, delta + i)));
    }
}

// The two halves of a head turn against each other: x * cos + (-x2, x1) * sin.
TARGET void rotate_head(uint16_t *x, const uint16_t *cosine, const uint16_t *sine, int64_t head_dim) {
    const int64_t half = head_dim / 2;
    for (int64_t i = 0; i < half; i += 16) {
        const __mmask16 mask = first16(half - i);
        const __m512 low = load_bf16(mask, x + i), high = load_bf16(mask, x + half + i);
        const __m512 turned_low = round_bf16(_mm512_mul_ps(high, load_bf16(mask, sine + i)));
        const __m512 turned_high = round_bf16(_mm512_mul_ps(low, load_bf16(mask, sine + half + i)));
        const __m512 kept_low = round_bf16(_mm512_mul_ps(low, load_bf16(mask, cosine + i)));
        const __m512 kept_high = round_bf16(_mm512_mul_ps(high, load_bf16(mask, cosine + half + i)));
        store_bf16(mask, x + i, _mm512_sub_ps(kept_low, turned_low));
        store_bf16(mask, x + half + i, _mm512_add_ps(kept_high, turned_high));
    }
}

TARGET void silu_mul_row(const uint16_t *gate, const uint16_t *up, uint16_t *out, int64_t width) {
    const __m512 one = _mm512_set1_ps(1.0f), minus_log2e = _mm512_set1_ps(-1.44269504f);
    const __m512 largest = _mm512_set1_ps(200.0f); // its power is infinite, and the activation zero
    for (int64_t i = 0; i < width; i += 16) {
        const __mmask16 mask = first16(width - i);
        const __m512 value = load_bf16(mask, gate + i);
        const __m512 power = exp2_ps(_mm512_min_ps(_mm512_mul_ps(value, minus_log2e), largest));
        const __m512 silu = round_bf16(_mm512_div_ps(value, _mm512_add_ps(one, power)));
        store_bf16(mask, out + i, _mm512_mul_ps(silu, load_bf16(mask, up + i)));
    }
}

// The following are called by every thread of a parallel region; all have finished when one returns.

// out = x / rms(x) * weight
void norm_rows(const uint16_t *x, const Norm &norm, uint16_t *out, int64_t num_rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
        norm_row(x + row * width, norm.weight, out + row * width, width, norm.epsilon);
}

// x += delta; out = x / rms(x) * weight
void add_norm_rows(uint16_t *x, const uint16_t *delta, const Norm &norm, uint16_t *out, int64_t num_rows,
                   int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
        add_row(x + row * width, delta + row * width, width);
        norm_row(x + row * width, norm.weight, out + row * width, width, norm.epsilon);
    }
}

void add_rows(uint16_t *x, const uint16_t *delta, int64_t num_rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) add_row(x + row * width, delta + row * width, width);
}

// Rotary positions in place: x [num_rows][stride] begins with num_heads heads; cosine, sine [num_rows][head_dim]
void rotate_rows(uint16_t *x, const uint16_t *cosine, const uint16_t *sine, int64_t num_rows, int64_t stride,
                 int64_t num_heads, int64_t head_dim) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
        for (int64_t head = 0; head < num_heads; ++head)
            rotate_head(x + row * stride + head * head_dim, cosine + row * head_dim, sine + row * head_dim, head_dim);
}

// out = silu(gate) * up: gate_up [num_rows][2 * width], gate first; out [num_rows][width]
void silu_mul_rows(const uint16_t *gate_up, uint16_t *out, int64_t num_rows, int64_t width) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row)
        silu_mul_row(gate_up + 2 * row * width, gate_up + (2 * row + 1) * width, out + row * width, width);
}

void linear_timed(const Linear &linear, const uint16_t *x, uint16_t *out, int64_t num_rows, Laps &laps) {
    laps.lap(REST);
    apply_linear(linear, x, out, num_rows);
    laps.lap(MATMUL);
}

} // namespace

// From a layer's input to rotated queries and keys.
void treeshare_before_attention(const Layer *layer, const Activations *activations) {
    const Layer &l = *layer;
    const Activations &a = *activations;
#pragma omp parallel
    {
        Laps laps(l.nanoseconds);
        norm_rows(a.x, l.first, a.normal, a.num_rows, l.qkv.num_inputs);
        linear_timed(l.qkv, a.normal, a.qkv, a.num_rows, laps);
        rotate_rows(a.qkv, a.cosine, a.sine, a.num_rows, l.qkv.num_outputs, l.num_rotated_heads, l.head_dim);
        laps.lap(REST);
    }
}

// From attention's result to the layer's output, over its input.
void treeshare_after_attention(const Layer *layer, const Activations *activations) {
    const Layer &l = *layer;
    const Activations &a = *activations;
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

// The parts alone, for tests and benchmarks.
void treeshare_rms_norm(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t num_rows, int64_t width,
                        float epsilon) {
#pragma omp parallel
    norm_rows(x, {weight, epsilon}, out, num_rows, width);
}

void treeshare_add_rms_norm(uint16_t *x, const uint16_t *delta, const uint16_t *weight, uint16_t *out,
                            int64_t num_rows, int64_t width, float epsilon) {
#pragma omp parallel
    add_norm_rows(x, delta, {weight, epsilon}, out, num_rows, width);
}

void treeshare_rotate(uint16_t *x, const uint16_t *cosine, const uint16_t *sine, int64_t num_rows, int64_t stride,
                      int64_t num_heads, int64_t head_dim) {
#pragma omp parallel
    rotate_rows(x, cosine, sine, num_rows, stride, num_heads, head_dim);
}

void treeshare_silu_mul(const uint16_t *gate_up, uint16_t *out, int64_t num_rows, int64_t width) {
#pragma omp parallel
    silu_mul_rows(gate_up, out, num_rows, width);
}

#else

void treeshare_before_attention(const Layer *, const Activations *) {}
void treeshare_after_attention(const Layer *, const Activations *) {}
void treeshare_rms_norm(const uint16_t *, const uint16_t *, uint16_t *, int64_t, int64_t, float) {}
void treeshare_add_rms_norm(uint16_t *, const uint16_t *, const uint16_t *, uint16_t *, int64_t, int64_t, float) {}
void treeshare_rotate(uint16_t *, const uint16_t *, const uint16_t *, int64_t, int64_t, int64_t, int64_t) {}
void treeshare_silu_mul(const uint16_t *, uint16_t *, int64_t, int64_t) {}

#endif
