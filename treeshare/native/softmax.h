// Exponentials, their sums, and log-softmax, of float32 rows of the vocabulary. Sums run over fixed blocks of one row,
// so a row's result does not depend on the other rows.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "common.h"
#include "numbers.h"

namespace softmax {

namespace {

constexpr int64_t BLOCK = 256;
constexpr float LOG2E = 1.44269504f;
constexpr int64_t MANY = 1 << 17; // numbers from which on threads are worth waking

// exp(x) for x <= 0; 0 for minus infinity.
INLINE Floats exp_lanes(Floats x) { return exp2_lanes<7>(mul(x, broadcast(LOG2E))); }

INLINE double sum_block(const float *weights) {
    Floats sum = broadcast(0.0f);
    for (int64_t at = 0; at < BLOCK; at += 16) sum = add(sum, load(weights + at));
    return sum_lanes(sum);
}

// out = x - log(sum of exp(x))
TARGET void log_softmax_row(const float *x, float *out, int64_t vocab_size) {
    const float low = -std::numeric_limits<float>::infinity();
    Floats largest = broadcast(low);
    for (int64_t at = 0; at < vocab_size; at += 16)
        largest = max_where(first16(vocab_size - at), largest, load_first(vocab_size - at, x + at));
    const Floats maximum = broadcast(max_lanes(largest));
    double total = 0;
    for (int64_t block = 0; block < vocab_size; block += BLOCK) {
        Floats sum = broadcast(0.0f);
        for (int64_t at = block; at < std::min(block + BLOCK, vocab_size); at += 16) {
            const Floats below = sub(load_first(vocab_size - at, x + at), maximum);
            sum = add(sum, only(first16(vocab_size - at), exp_lanes(below)));
        }
        total += sum_lanes(sum);
    }
    const Floats log_total = broadcast(float(numbers::log(total)));
    for (int64_t at = 0; at < vocab_size; at += 16) {
        const int64_t left = vocab_size - at;
        store_first(left, out + at, sub(sub(load_first(left, x + at), maximum), log_total));
    }
}

TARGET void exp_row(float *x, int64_t first, int64_t count) {
    store_first(count - first, x + first, exp_lanes(load_first(count - first, x + first)));
}

} // namespace

extern "C" void LEVEL_EXPORT(exp)(float *x, int64_t count) {
#pragma omp parallel for schedule(static) if (count >= MANY)
    for (int64_t first = 0; first < count; first += 16) exp_row(x, first, count);
}

extern "C" TARGET void LEVEL_EXPORT(sum_blocks)(const float *weights, double *sums, int64_t num_blocks) {
    for (int64_t block = 0; block < num_blocks; ++block) sums[block] = sum_block(weights + block * BLOCK);
}

extern "C" void LEVEL_EXPORT(log_softmax)(const float *x, float *out, int64_t num_rows, int64_t vocab_size) {
#pragma omp parallel for schedule(static) if (num_rows * vocab_size >= MANY)
    for (int64_t row = 0; row < num_rows; ++row) log_softmax_row(x + row * vocab_size, out + row * vocab_size, vocab_size);
}

} // namespace softmax
