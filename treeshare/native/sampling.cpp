// Drawing tokens from rows of logits by inverse CDF in token-id order, where nothing but a temperature stands
// between the logits and the distribution. What `sampling/sampler.py` defines, in two passes over a row. Sums
// run over fixed blocks of one row, so a row's result does not depend on its company.

#include <cstdint>

extern "C" {

struct Draws {
    int64_t num_rows, vocab_size, stride, is_bfloat16;
    const void *logits;        // [.][stride] bfloat16 or float32
    const int64_t *rows;       // [num_rows]: which rows of logits
    const float *temperatures; // [num_rows]; 0 takes the likeliest token, the lowest id on a tie
    const int64_t *indptr;     // [num_rows + 1]: draws of each row
    const double *uniforms;    // [num_draws]
    int64_t *tokens;           // [num_draws]
    double *logprobs;          // [num_draws]: before temperature
    int64_t *broken;           // [num_rows]: 1 where a row holds NaN, infinity or nothing finite
};

void treeshare_draw(const Draws *);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include "common.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace {

constexpr int64_t BLOCK = 256;
constexpr float LOG2E = 1.44269504f;

// Sixteen logits from `at` on; beyond the vocabulary minus infinity.
INLINE __m512 load(const Draws &draws, int64_t row, int64_t at) {
    const __mmask16 mask = first16(draws.vocab_size - at);
    const int64_t place = row * draws.stride + at;
    const __m512 values = draws.is_bfloat16
                              ? load_bf16(mask, static_cast<const uint16_t *>(draws.logits) + place)
                              : _mm512_maskz_loadu_ps(mask, static_cast<const float *>(draws.logits) + place);
    return _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()), mask, values);
}

TARGET float logit(const Draws &draws, int64_t row, int64_t token) {
    return _mm512_cvtss_f32(load(draws, row, token));
}

// exp((x - high) * scale), zero for minus infinity
INLINE __m512 weigh(__m512 x, __m512 high, __m512 scale) {
    const __m512 power = _mm512_mul_ps(_mm512_sub_ps(x, high), scale);
    const __mmask16 alive = _mm512_cmp_ps_mask(power, _mm512_set1_ps(-149.0f), _CMP_GT_OQ);
    return _mm512_maskz_mov_ps(alive, exp2_ps(power));
}

TARGET float highest(const Draws &draws, int64_t row, bool *broken) {
    __m512 high = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __mmask16 not_numbers = 0;
    for (int64_t at = 0; at < draws.vocab_size; at += 16) {
        const __m512 x = load(draws, row, at);
        not_numbers |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        high = _mm512_max_ps(high, x);
    }
    const float result = _mm512_reduce_max_ps(high);
    *broken = not_numbers || !std::isfinite(result);
    return result;
}

TARGET int64_t first_equal(const Draws &draws, int64_t row, float value) {
    for (int64_t at = 0; at < draws.vocab_size; at += 16) {
        const __mmask16 equal = _mm512_cmp_ps_mask(load(draws, row, at), _mm512_set1_ps(value), _CMP_EQ_OQ);
        if (equal) return at + __builtin_ctz(equal);
    }
    return 0;
}

// Sums of the weights of each block, at `scale`.
TARGET void block_sums(const Draws &draws, int64_t row, float high, float scale, std::vector<double> &sums) {
    const __m512 highs = _mm512_set1_ps(high), scales = _mm512_set1_ps(scale);
    for (int64_t block = 0; block * BLOCK < draws.vocab_size; ++block) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t at = block * BLOCK; at < (block + 1) * BLOCK; at += 16)
            sum = _mm512_add_ps(sum, weigh(load(draws, row, at), highs, scales));
        sums[block] = _mm512_reduce_add_ps(sum);
    }
}

// The first token whose cumulative weight exceeds the target; a token without weight is never drawn.
TARGET int64_t draw_token(const Draws &draws, int64_t row, float high, float scale, const std::vector<double> &sums,
                          const std::vector<double> &cumulative, double uniform) {
    const double target = uniform * cumulative.back();
    int64_t block = 0;
    for (int64_t i = 0; i < int64_t(sums.size()); ++i) {
        if (!(sums[i] > 0)) continue;
        block = i;
        if (cumulative[i] > target) break;
    }
    double reached = block ? cumulative[block - 1] : 0.0;
    int64_t token = block * BLOCK;
    for (int64_t at = block * BLOCK; at < (block + 1) * BLOCK; at += 16) {
        alignas(64) float weights[16];
        _mm512_store_ps(weights, weigh(load(draws, row, at), _mm512_set1_ps(high), _mm512_set1_ps(scale)));
        for (int64_t i = 0; i < 16; ++i) {
            if (!(weights[i] > 0)) continue;
            token = at + i;
            reached += weights[i];
            if (reached > target) return token;
        }
    }
    return token;
}

TARGET void draw_row(const Draws &draws, int64_t i, std::vector<double> &sums, std::vector<double> &cumulative) {
    const int64_t row = draws.rows[i];
    bool broken = false;
    const float high = highest(draws, row, &broken), temperature = draws.temperatures[i];
    draws.broken[i] = broken;
    if (broken) return;
    block_sums(draws, row, high, LOG2E, sums);
    double total = 0;
    for (const double sum : sums) total += sum;
    const float scale = std::min(LOG2E / temperature, std::numeric_limits<float>::max());
    if (temperature > 0) {
        if (temperature != 1.0f) block_sums(draws, row, high, scale, sums);
        double reached = 0;
        for (int64_t block = 0; block < int64_t(sums.size()); ++block) cumulative[block] = reached += sums[block];
    }
    for (int64_t draw = draws.indptr[i]; draw < draws.indptr[i + 1]; ++draw) {
        draws.tokens[draw] = temperature > 0
                                 ? draw_token(draws, row, high, scale, sums, cumulative, draws.uniforms[draw])
                                 : first_equal(draws, row, high);
        draws.logprobs[draw] = double(logit(draws, row, draws.tokens[draw])) - (double(high) + std::log(total));
    }
}

} // namespace

void treeshare_draw(const Draws *draws) {
    const int64_t num_blocks = (draws->vocab_size + BLOCK - 1) / BLOCK;
#pragma omp parallel if (draws->num_rows * draws->vocab_size >= 1 << 17)
    {
        std::vector<double> sums(num_blocks), cumulative(num_blocks);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < draws->num_rows; ++i) draw_row(*draws, i, sums, cumulative);
    }
}

#else

void treeshare_draw(const Draws *) {}

#endif
