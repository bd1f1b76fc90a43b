// Drawing tokens from rows of logits by inverse CDF in token-id order, where temperature, top-k, top-p and min-p
// stand between the logits and the distribution: what `sampling/sampler.py` and `sampling/filters.py` define. A row's
// weights stay in L2. Sums run over fixed blocks of one row, so a row's result does not depend on its company.

#include <cstdint>

extern "C" {

struct Draws {
    int64_t num_rows, vocab_size, stride, is_bfloat16;
    const void *logits;        // [.][stride] bfloat16 or float32
    const int64_t *rows;       // [num_rows]: which rows of logits
    const float *temperatures; // [num_rows]; 0 takes the likeliest token, the lowest id on a tie
    const int64_t *top_k;      // [num_rows]; 0: all
    const double *top_p;       // [num_rows]; 1: all
    const float *min_p;        // [num_rows]; 0: all
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
#include <functional>
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

using Weights = std::vector<float>; // whole blocks; zero beyond the vocabulary
using Sums = std::vector<double>;   // of blocks

struct Work {
    Weights weights, candidates;
    Sums sums;
    explicit Work(int64_t vocab_size)
        : weights((vocab_size + BLOCK - 1) / BLOCK * BLOCK), candidates(weights.size()), sums(weights.size() / BLOCK) {}
};

TARGET double sum_blocks(const Weights &weights, Sums &sums) {
    double total = 0;
    for (size_t block = 0; block < sums.size(); ++block) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t at = 0; at < BLOCK; at += 16)
            sum = _mm512_add_ps(sum, _mm512_loadu_ps(&weights[block * BLOCK + at]));
        total += sums[block] = _mm512_reduce_add_ps(sum);
    }
    return total;
}

// Fill in the weights at `scale`, the largest of which is 1.
TARGET void weigh_row(const Draws &draws, int64_t row, float high, float scale, Weights &weights) {
    const __m512 highs = _mm512_set1_ps(high), scales = _mm512_set1_ps(scale);
    for (size_t at = 0; at < weights.size(); at += 16)
        _mm512_storeu_ps(&weights[at], weigh(load(draws, row, at), highs, scales));
}

// The weights of at least `floor`, in any order; returns how many.
TARGET int64_t collect(const Weights &weights, float floor, Weights &candidates) {
    int64_t count = 0;
    for (size_t at = 0; at < weights.size(); at += 16) {
        const __m512 x = _mm512_loadu_ps(&weights[at]);
        const __mmask16 mask = _mm512_cmp_ps_mask(x, _mm512_set1_ps(floor), _CMP_GE_OQ);
        if (!mask) continue;
        _mm512_mask_compressstoreu_ps(&candidates[count], mask, x);
        count += __builtin_popcount(mask);
    }
    return count;
}

TARGET void drop_below(Weights &weights, float floor) {
    for (size_t at = 0; at < weights.size(); at += 16) {
        const __m512 x = _mm512_loadu_ps(&weights[at]);
        const __mmask16 kept = _mm512_cmp_ps_mask(x, _mm512_set1_ps(floor), _CMP_GE_OQ);
        _mm512_storeu_ps(&weights[at], _mm512_maskz_mov_ps(kept, x));
    }
}

// Of tied tokens all are kept.
void keep_top_k(Weights &weights, int64_t k, Weights &candidates) {
    std::vector<float> highs;
    for (size_t at = 0; at < weights.size(); at += BLOCK)
        highs.push_back(*std::max_element(&weights[at], &weights[at] + BLOCK));
    float floor = 0;
    if (k <= int64_t(highs.size())) { // k blocks hold a weight of at least `floor`: no smaller one is the k-th
        std::nth_element(highs.begin(), highs.begin() + k - 1, highs.end(), std::greater<float>());
        floor = highs[k - 1];
    }
    const int64_t count = collect(weights, floor, candidates);
    std::nth_element(candidates.begin(), candidates.begin() + k - 1, candidates.begin() + count,
                     std::greater<float>());
    drop_below(weights, candidates[k - 1]);
}

// The smallest set of likeliest tokens whose mass reaches `top_p`; of tied tokens those with the lowest ids.
void keep_top_p(Weights &weights, double top_p, double total, Weights &candidates) {
    const double wanted = top_p * total;
    const double floor = (total - wanted) / (2 * weights.size()); // below lies at most half of the mass left out
    const int64_t count = collect(weights, std::max(float(floor), std::numeric_limits<float>::min()), candidates);
    const auto first = candidates.begin(), last = first + count;
    int64_t num_sorted = 0, num_kept = 0;
    for (double mass = 0; num_kept < count && !(num_kept && mass >= wanted);) {
        if (num_kept == num_sorted) { // the likeliest come first; mostly few are needed
            num_sorted = std::min(count, std::max<int64_t>(64, 4 * num_sorted));
            if (num_sorted < count) std::nth_element(first + num_kept, first + num_sorted, last, std::greater<float>());
            std::sort(first + num_kept, first + num_sorted, std::greater<float>());
        }
        mass += candidates[num_kept++];
    }
    const float border = candidates[num_kept - 1];
    int64_t num_tied = num_kept - (std::lower_bound(first, first + num_kept, border, std::greater<float>()) - first);
    drop_below(weights, border);
    for (float &weight : weights)
        if (weight == border && num_tied-- <= 0) weight = 0;
}

// The first token whose cumulative weight exceeds the target; a token without weight is never drawn.
int64_t draw_token(const Work &work, double target) {
    double reached = 0, before = 0;
    int64_t block = 0;
    for (size_t i = 0; i < work.sums.size(); ++i) {
        if (work.sums[i] > 0) {
            block = i;
            before = reached;
        }
        reached += work.sums[i];
        if (work.sums[i] > 0 && reached > target) break;
    }
    int64_t token = block * BLOCK;
    for (int64_t at = token; at < (block + 1) * BLOCK; ++at) {
        if (!(work.weights[at] > 0)) continue;
        token = at;
        before += work.weights[at];
        if (before > target) break;
    }
    return token;
}

TARGET void draw_row(const Draws &draws, int64_t i, Work &work) {
    const int64_t row = draws.rows[i], top_k = draws.top_k[i];
    bool broken = false;
    const float high = highest(draws, row, &broken), temperature = draws.temperatures[i];
    draws.broken[i] = broken;
    if (broken) return;
    weigh_row(draws, row, high, LOG2E, work.weights);
    double total = sum_blocks(work.weights, work.sums);
    const double log_total = double(high) + std::log(total);
    if (temperature > 0) {
        if (temperature != 1.0f)
            weigh_row(draws, row, high, std::min(LOG2E / temperature, std::numeric_limits<float>::max()), work.weights);
        if (top_k > 0 && top_k < draws.vocab_size) keep_top_k(work.weights, top_k, work.candidates);
        if (draws.top_p[i] < 1)
            keep_top_p(work.weights, draws.top_p[i], sum_blocks(work.weights, work.sums), work.candidates);
        if (draws.min_p[i] > 0) drop_below(work.weights, draws.min_p[i]);
        total = sum_blocks(work.weights, work.sums);
    }
    for (int64_t draw = draws.indptr[i]; draw < draws.indptr[i + 1]; ++draw) {
        draws.tokens[draw] =
            temperature > 0 ? draw_token(work, draws.uniforms[draw] * total) : first_equal(draws, row, high);
        draws.logprobs[draw] = double(logit(draws, row, draws.tokens[draw])) - log_total;
    }
}

} // namespace

void treeshare_draw(const Draws *draws) {
#pragma omp parallel if (draws->num_rows * draws->vocab_size >= 1 << 17)
    {
        Work work(draws->vocab_size);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < draws->num_rows; ++i) draw_row(*draws, i, work);
    }
}

#else

void treeshare_draw(const Draws *) {}

#endif
