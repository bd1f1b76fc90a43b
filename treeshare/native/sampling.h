// Drawing tokens from rows of logits by inverse CDF in token-id order, where mask, bias, temperature, min-p, top-k and
// top-p lead from logits to the distribution, as `sampling/sampler.py` and `sampling/filters.py` define it. A row's
// weights stay in L2. Sums run over fixed blocks of one row, so a row's result does not depend on the other rows.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <utility>
#include <vector>

#include "common.h"
#include "numbers.h"
#include "softmax.h"

namespace sampling {

namespace {

using softmax::BLOCK;
using softmax::LOG2E;

// Logits of a row: the model's, or what a bias made of them, of the tokens that may be drawn.
struct Row {
    const void *logits;
    int64_t vocab_size;
    bool is_bfloat16;     // else float32
    const uint32_t *mask; // a bit for each token that may be drawn; null: all may
};

Row model_row(const Draws &draws, int64_t row) {
    const int64_t bytes = row * draws.stride * (draws.is_bfloat16 ? 2 : 4);
    return {static_cast<const char *>(draws.logits) + bytes, draws.vocab_size, bool(draws.is_bfloat16), nullptr};
}

// Which of sixteen tokens from `at` on may be drawn; `at` is within the vocabulary.
INLINE int allowed_at(const uint32_t *mask, int64_t at) { return mask[at / 32] >> (at % 32) & 0xffff; }

// Sixteen logits from `at` on; minus infinity beyond the vocabulary, and of tokens that may not be drawn.
INLINE Floats logits_at(const Row &row, int64_t at) {
    const int64_t left = row.vocab_size - at;
    const Floats never = broadcast(-std::numeric_limits<float>::infinity());
    const Floats values = row.is_bfloat16 ? load_bf16(left, static_cast<const uint16_t *>(row.logits) + at)
                                          : load_first(left, static_cast<const float *>(row.logits) + at);
    const Floats known = select_lanes(first16(left), values, never);
    return row.mask && left > 0 ? select_lanes(lanes_of(allowed_at(row.mask, at)), known, never) : known;
}

TARGET float logit(const Row row, int64_t token) {
    return first_lane(logits_at(row, token));
}

// 2 ** ((x - maximum) * scale), zero for minus infinity
INLINE Floats weigh(Floats x, Floats maximum, Floats scale) {
    const Floats power = mul(sub(x, maximum), scale);
    return only(greater(power, broadcast(-149.0f)), exp2_lanes<5>(power));
}

// The largest logit of all tokens, and of those that `mask` allows.
struct Maxima {
    float all, allowed;
    bool has_nan;
};

TARGET Maxima find_maxima(const Row row, const uint32_t *mask) {
    Floats all = broadcast(-std::numeric_limits<float>::infinity()), allowed = all;
    int not_numbers = 0;
    for (int64_t at = 0; at < row.vocab_size; at += 16) {
        const Floats x = logits_at(row, at);
        not_numbers |= bits(not_a_number(x));
        all = max(all, x);
        if (mask) allowed = max_where(lanes_of(allowed_at(mask, at)), allowed, x);
    }
    return {max_lanes(all), max_lanes(mask ? allowed : all), bool(not_numbers)};
}

TARGET int64_t first_equal(const Row row, float value) {
    for (int64_t at = 0; at < row.vocab_size; at += 16) {
        const int found = bits(equal(logits_at(row, at), broadcast(value)));
        if (found) return at + __builtin_ctz(found);
    }
    return 0;
}

using Weights = std::vector<float>; // whole blocks; zero beyond the vocabulary
using Sums = std::vector<double>;   // of blocks

struct Work {
    Weights weights, candidates;
    Sums sums;
    Weights biased; // logits of a row that has a bias
    explicit Work(int64_t vocab_size)
        : weights((vocab_size + BLOCK - 1) / BLOCK * BLOCK), candidates(weights.size()), sums(weights.size() / BLOCK) {}
};

// The logits of a row with its bias.
TARGET Row biased_row(const Draws &draws, int64_t i, const Row row, Work &work) {
    work.biased.resize(work.weights.size());
    for (int64_t at = 0; at < row.vocab_size; at += 16) store(&work.biased[at], logits_at(row, at));
    for (int64_t at = draws.bias_indptr[i]; at < draws.bias_indptr[i + 1]; ++at)
        work.biased[draws.bias_tokens[at]] += draws.bias_values[at];
    return {work.biased.data(), row.vocab_size, false, row.mask};
}

TARGET double sum_blocks(const Weights &weights, Sums &sums) {
    double total = 0;
    for (size_t block = 0; block < sums.size(); ++block) {
        total += sums[block] = softmax::sum_block(&weights[block * BLOCK]);
    }
    return total;
}

// Fill in a row's weights, 2 ** ((logit - maximum) * scale); the largest is 1.
TARGET void weigh_row(const Row row, float maximum, float scale, Weights &weights) {
    const Floats maxima = broadcast(maximum), scales = broadcast(scale);
    for (int64_t at = 0; at < int64_t(weights.size()); at += 16) {
        const bool is_empty = row.mask && at < row.vocab_size && !allowed_at(row.mask, at);
        store(&weights[at], is_empty ? broadcast(0.0f) : weigh(logits_at(row, at), maxima, scales));
    }
}

// Set the weights of all tokens that may not be drawn to zero.
TARGET void drop_masked(const Row row, Weights &weights) {
    for (int64_t at = 0; at < row.vocab_size; at += 16)
        store(&weights[at], only(lanes_of(allowed_at(row.mask, at)), load(&weights[at])));
}

// Copy the weights that are not below `floor` to `candidates`; returns how many.
TARGET int64_t collect(const Weights &weights, float floor, Weights &candidates) {
    int64_t count = 0;
    for (size_t at = 0; at < weights.size(); at += 16) {
        const Floats x = load(&weights[at]);
        const Mask mask = at_least(x, broadcast(floor));
        if (bits(mask)) count += compress(&candidates[count], mask, x);
    }
    return count;
}

// Set all weights below `floor` to zero.
TARGET void drop_below(Weights &weights, float floor) {
    for (size_t at = 0; at < weights.size(); at += 16) {
        const Floats x = load(&weights[at]);
        store(&weights[at], only(at_least(x, broadcast(floor)), x));
    }
}

// Set the weights of all tokens whose logits are below `floor` to zero.
TARGET void drop_unlikely(const Row row, float floor, Weights &weights) {
    for (size_t at = 0; at < weights.size(); at += 16)
        store(&weights[at], only(at_least(logits_at(row, at), broadcast(floor)), load(&weights[at])));
}

// The k-th largest logit of a row, k not above the vocabulary's size.
TARGET float kth_logit(const Row row, int64_t k, Weights &candidates) {
    std::vector<float> block_maxima;
    for (size_t block = 0; block < candidates.size(); block += BLOCK) {
        Floats maximum = logits_at(row, block);
        for (size_t at = block + 16; at < block + BLOCK; at += 16) maximum = max(maximum, logits_at(row, at));
        block_maxima.push_back(max_lanes(maximum));
    }
    float floor = -std::numeric_limits<float>::infinity();
    if (k <= int64_t(block_maxima.size())) { // k blocks have a logit >= `floor`: no smaller one is the k-th
        std::nth_element(block_maxima.begin(), block_maxima.begin() + k - 1, block_maxima.end(), std::greater<float>());
        floor = block_maxima[k - 1];
    }
    int64_t count = 0;
    for (size_t at = 0; at < candidates.size(); at += 16) {
        const Floats x = logits_at(row, at);
        const Mask mask = at_least(x, broadcast(floor));
        if (bits(mask)) count += compress(&candidates[count], mask, x);
    }
    std::nth_element(candidates.begin(), candidates.begin() + k - 1, candidates.begin() + count,
                     std::greater<float>());
    return candidates[k - 1];
}

// The smallest float that is not below `border`.
float round_up(double border) {
    const float rounded = float(border);
    return double(rounded) < border ? std::nextafter(rounded, std::numeric_limits<float>::infinity()) : rounded;
}

// Keep the smallest set of likeliest tokens whose mass reaches `top_p`; of equal weights those of the highest logits,
// of equal logits those with the lowest ids.
void keep_top_p(const Row row, double top_p, double total, Work &work) {
    Weights &weights = work.weights, &candidates = work.candidates;
    const double wanted = top_p * total;
    const double floor = (total - wanted) / (2 * weights.size()); // tokens below have at most half of the mass left out
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
    const auto first_tied = std::lower_bound(first, first + num_kept, border, std::greater<float>());
    const int64_t num_tied = num_kept - (first_tied - first);
    drop_below(weights, border);
    std::vector<std::pair<float, int64_t>> tied; // minus the logit, and the token
    for (int64_t token = 0; token < row.vocab_size; ++token)
        if (weights[token] == border) tied.emplace_back(-logit(row, token), token);
    if (num_tied == int64_t(tied.size())) return;
    std::nth_element(tied.begin(), tied.begin() + num_tied, tied.end());
    for (size_t i = num_tied; i < tied.size(); ++i) weights[tied[i].second] = 0;
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

// The weights of a row are here those of temperature 1, of all tokens; the row's own are made of them.
TARGET void weigh_again(const Row row, bool is_same_maximum, float maximum, float temperature, Weights &weights) {
    if (temperature != 1.0f || !is_same_maximum)
        weigh_row(row, maximum, std::min(LOG2E / temperature, std::numeric_limits<float>::max()), weights);
    else if (row.mask)
        drop_masked(row, weights); // to the bits that weigh_row would give
}

TARGET void draw_row(const Draws &draws, int64_t i, Work &work) {
    const Row given = model_row(draws, draws.rows[i]);
    const int64_t top_k = draws.top_k[i];
    const float temperature = draws.temperatures[i];
    const Maxima maxima = find_maxima(given, draws.masks[i]);
    draws.broken[i] = maxima.has_nan || !std::isfinite(maxima.all);
    if (draws.broken[i]) return;
    weigh_row(given, maxima.all, LOG2E, work.weights);
    double total = sum_blocks(work.weights, work.sums);
    const double log_total = double(maxima.all) + numbers::log(total);
    const bool has_bias = draws.bias_indptr[i] < draws.bias_indptr[i + 1];
    Row row = given;
    row.mask = draws.masks[i];
    if (has_bias) row = biased_row(draws, i, row, work);
    const float maximum = has_bias ? find_maxima(row, nullptr).all : maxima.allowed;
    if (!std::isfinite(maximum)) draws.broken[i] = 2;
    if (draws.broken[i]) return;
    if (temperature > 0) {
        weigh_again(row, !has_bias && maximum == maxima.all, maximum, temperature, work.weights);
        float floor = round_up(double(maximum) + draws.margins[i]); // of min-p
        if (top_k > 0 && top_k < draws.vocab_size) floor = std::max(floor, kth_logit(row, top_k, work.candidates));
        if (floor > -std::numeric_limits<float>::infinity()) drop_unlikely(row, floor, work.weights);
        if (draws.top_p[i] < 1) keep_top_p(row, draws.top_p[i], sum_blocks(work.weights, work.sums), work);
        total = sum_blocks(work.weights, work.sums);
    }
    for (int64_t draw = draws.indptr[i]; draw < draws.indptr[i + 1]; ++draw) {
        draws.tokens[draw] =
            temperature > 0 ? draw_token(work, draws.uniforms[draw] * total) : first_equal(row, maximum);
        draws.logprobs[draw] = double(logit(given, draws.tokens[draw])) - log_total;
    }
}

} // namespace

extern "C" void LEVEL_EXPORT(draw)(const Draws *draws) {
#pragma omp parallel if (draws->num_rows * draws->vocab_size >= 1 << 17)
    {
        Work work(draws->vocab_size);
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < draws->num_rows; ++i) draw_row(*draws, i, work);
    }
}

} // namespace sampling
