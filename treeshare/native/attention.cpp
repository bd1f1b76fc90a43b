// Tree attention for one layer of one step, in bfloat16 with AVX-512 BF16 instructions.
//
// The step's keys and values are stored first, then attended to. Rows are cut into blocks; a task is one block and
// one KV head. It walks every segment whose slice meets the block, root first, and then the private pages of each
// row; scores stay in registers and L1, and
// the running result (numerator, maximum, denominator) in L2. What a row adds up, and in which order, depends
// on its own keys alone: blocks of KEYS keys from the start of each segment, one after the other. So a row's
// bits do not depend on its company.
//
// Nothing here knows about Python or torch; its callers hand over addresses. Built without linking an OpenMP library:
// torch's own is already loaded, and two of them would fight for the cores.
//
// Shapes: T packed rows, H KV heads, G query heads per KV head, D head_dim, E stored value width, N padded
// tokens of a segment, C tokens of a page. Elements are bfloat16 unless said otherwise.

#include <cstdint>

extern "C" {

struct TreeStep {
    int64_t num_rows, num_heads, group_size, head_dim, value_width, page_size;
    int64_t num_slices;
    const int64_t *slices;         // [num_slices][5]: first row, last row, keys, first own token or -1, N
    const uint64_t *keys, *values; // [num_slices]: address of [H][D][N] and [H][N][E]
    const int64_t *page_indptr;    // [num_rows + 1]
    const int64_t *pages;          // page numbers of each row, oldest first
    const int64_t *private_tokens; // [num_rows]: tokens on a row's pages, this step's included; 0: prefill
    uint64_t pool_keys, pool_values; // [pages][H][D][C] and [pages][H][C][E]
    int64_t *nanoseconds;            // [5], added to: of all threads, by Kind; or null: not measured
};

// What a layer's projections give: strides count elements from row to row, heads lie side by side.
struct Projections {
    const uint16_t *query, *key, *value; // [T][H * G][D], [T][H][D], [T][H][D]
    int64_t query_stride, key_stride, value_stride;
};

int treeshare_version() { return 7; }
int treeshare_supported();
void treeshare_attend(const TreeStep *, const Projections *, float scale, uint16_t *out, float *lse);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "common.h"

namespace {

constexpr int ROWS = 64;     // most packed rows of a task
constexpr int TASKS = 3;     // least for each thread, if there are rows enough, so that none waits for long
constexpr int KEYS = 256;    // keys of a block; its packed keys and values fit into L2 beside the rows
constexpr int GROUP = 64;    // keys of a register tile: four vectors of sixteen
constexpr int QUERIES = 6;   // query rows of a register tile
constexpr uint16_t ONE = 0x3f80;

enum Kind { SHARED, CAUSAL, PRIVATE, MERGE, STORE }; // MERGE: gathering the queries, normalising the result

// One task's working set.
struct Work {
    uint16_t *query;   // [ROWS * G][D]
    uint16_t *keys;    // [KEYS / GROUP][D / 2][GROUP][2]
    uint16_t *values;  // [KEYS / 2][D][2]
    float *scores;     // [QUERIES][KEYS]
    uint16_t *weights; // [QUERIES][KEYS]
    float *numerator;  // [ROWS * G][D]
    float *high;       // [ROWS * G]: running maximum, in units of log 2
    float *total;      // [ROWS * G]: running denominator
    int head_dim;
    float scale;       // of scores, times log2(e)

    Work(Scratch &scratch, int num_queries, int head_dim, float scale) : head_dim(head_dim), scale(scale) {
        const size_t sizes[] = {size_t(num_queries) * head_dim * 2, size_t(KEYS) * head_dim * 2,
                                size_t(KEYS) * head_dim * 2,        size_t(QUERIES) * KEYS * 4,
                                size_t(QUERIES) * KEYS * 2,         size_t(num_queries) * head_dim * 4,
                                size_t(num_queries) * 4,            size_t(num_queries) * 4};
        size_t offsets[9] = {0};
        for (int i = 0; i < 8; ++i) offsets[i + 1] = offsets[i] + (sizes[i] + 63) / 64 * 64;
        char *memory = scratch.reserve(offsets[8]);
        query = reinterpret_cast<uint16_t *>(memory + offsets[0]);
        keys = reinterpret_cast<uint16_t *>(memory + offsets[1]);
        values = reinterpret_cast<uint16_t *>(memory + offsets[2]);
        scores = reinterpret_cast<float *>(memory + offsets[3]);
        weights = reinterpret_cast<uint16_t *>(memory + offsets[4]);
        numerator = reinterpret_cast<float *>(memory + offsets[5]);
        high = reinterpret_cast<float *>(memory + offsets[6]);
        total = reinterpret_cast<float *>(memory + offsets[7]);
        std::fill_n(numerator, size_t(num_queries) * head_dim, 0.0f);
        std::fill_n(high, num_queries, -std::numeric_limits<float>::infinity());
        std::fill_n(total, num_queries, 0.0f);
    }
};

INLINE __m512i even_odd(bool high) {
    alignas(64) static const uint16_t low_index[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i index = _mm512_load_si512(low_index);
    return high ? _mm512_add_epi16(index, _mm512_set1_epi16(16)) : index;
}

// Interleave rows of transposed keys, [D][stride], into pairs; keys from `count` on become zero.
TARGET void pack_keys(const uint16_t *source, int64_t stride, int head_dim, int count, uint16_t *packed) {
    const __m512i low = even_odd(false), high = even_odd(true);
    for (int first = 0; first < count; first += GROUP) {
        for (int pair = 0; pair < head_dim / 2; ++pair) {
            const uint16_t *even = source + 2 * pair * stride + first, *odd = even + stride;
            for (int half = 0; half < GROUP; half += 32) {
                const __mmask32 mask = first32(count - first - half);
                const __m512i a = _mm512_maskz_loadu_epi16(mask, even + half);
                const __m512i b = _mm512_maskz_loadu_epi16(mask, odd + half);
                _mm512_store_si512(packed, _mm512_permutex2var_epi16(a, low, b));
                _mm512_store_si512(packed + 32, _mm512_permutex2var_epi16(a, high, b));
                packed += 64;
            }
        }
    }
}

// Interleave neighbouring rows of values, [count][stride]; a missing last row counts as zero.
TARGET void pack_values(const uint16_t *source, int64_t stride, int head_dim, int count, uint16_t *packed) {
    const __m512i low = even_odd(false), high = even_odd(true);
    for (int token = 0; token < count; token += 2) {
        const uint16_t *even = source + token * stride, *odd = even + stride;
        for (int column = 0; column < head_dim; column += 32) {
            const __mmask32 mask = first32(head_dim - column);
            const __m512i a = _mm512_maskz_loadu_epi16(mask, even + column);
            const __m512i b = token + 1 < count ? _mm512_maskz_loadu_epi16(mask, odd + column)
                                                : _mm512_setzero_si512();
            _mm512_store_si512(packed, _mm512_permutex2var_epi16(a, low, b));
            if (column + 16 < head_dim) _mm512_store_si512(packed + 32, _mm512_permutex2var_epi16(a, high, b));
            packed += column + 16 < head_dim ? 64 : 32;
        }
    }
}

// scores[m][n] = query[m] . key[n]
template <int M>
TARGET void score(const uint16_t *query, const uint16_t *keys, int head_dim, int count, float *scores) {
    for (int first = 0; first < count; first += GROUP) {
        __m512 sums[M][4];
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_setzero_ps();
        for (int pair = 0; pair < head_dim / 2; ++pair, keys += 2 * GROUP) {
            const __m512bh b[4] = {pairs(keys), pairs(keys + 32), pairs(keys + 64), pairs(keys + 96)};
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
                const __m512bh a = broadcast_pair(query + m * head_dim + 2 * pair);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], a, b[j]);
            }
        }
        for (int m = 0; m < M; ++m)
            for (int j = 0; j < 4; ++j) _mm512_store_ps(scores + m * KEYS + first + 16 * j, sums[m][j]);
    }
}

// Turn one row of scores into weights below its new maximum; returns the factor of what was added before.
TARGET float soften(const float *scores, uint16_t *weights, int seen, int count, float scale, float *high,
                    float *total) {
    const __m512 minus_infinity = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
    __m512 top = minus_infinity;
    for (int n = 0; n < seen; n += 16)
        top = _mm512_mask_max_ps(top, first16(seen - n), top, _mm512_load_ps(scores + n));
    const float old_high = *high, new_high = std::max(old_high, _mm512_reduce_max_ps(top) * scale);
    const __m512 shift = _mm512_set1_ps(new_high), factor = _mm512_set1_ps(scale);
    __m512 sum = _mm512_setzero_ps();
    for (int n = 0; n < count; n += 16) {
        const __m512 score = _mm512_load_ps(scores + n);
        const __m512 weight = _mm512_maskz_mov_ps(first16(seen - n), exp2_ps(_mm512_fmsub_ps(score, factor, shift)));
        sum = _mm512_add_ps(sum, weight);
        _mm256_store_si256(reinterpret_cast<__m256i *>(weights + n), (__m256i)_mm512_cvtneps_pbh(weight));
    }
    const float correction = std::exp2(old_high - new_high);
    *high = new_high;
    *total = *total * correction + _mm512_reduce_add_ps(sum);
    return correction;
}

// numerator[m] = numerator[m] * correction[m] + weights[m] . values, for J vectors of sixteen columns
template <int M, int J>
TARGET void add_values(const uint16_t *weights, const uint16_t *values, int head_dim, int num_pairs,
                       const float *correction, float *numerator) {
    __m512 sums[M][J];
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < J; ++j) sums[m][j] = _mm512_setzero_ps();
    for (int pair = 0; pair < num_pairs; ++pair, values += 2 * head_dim) {
        __m512bh b[J];
        for (int j = 0; j < J; ++j) b[j] = pairs(values + 32 * j);
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m512bh a = broadcast_pair(weights + m * KEYS + 2 * pair);
#pragma GCC unroll 4
            for (int j = 0; j < J; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], a, b[j]);
        }
    }
    for (int m = 0; m < M; ++m) {
        const __m512 factor = _mm512_set1_ps(correction[m]);
        for (int j = 0; j < J; ++j) {
            float *place = numerator + m * head_dim + 16 * j;
            _mm512_storeu_ps(place, _mm512_fmadd_ps(_mm512_loadu_ps(place), factor, sums[m][j]));
        }
    }
}

// Attend M queries, the first of which has number `query`, to the packed block; `seen[m]` keys of `count`.
template <int M>
TARGET void attend_tile(Work &work, int query, const int *seen, int count) {
    const int dim = work.head_dim;
    float corrections[M];
    score<M>(work.query + query * dim, work.keys, dim, count, work.scores);
    for (int m = 0; m < M; ++m)
        corrections[m] = soften(work.scores + m * KEYS, work.weights + m * KEYS, seen[m], count, work.scale,
                                work.high + query + m, work.total + query + m);
    const int num_pairs = (count + 1) / 2;
    for (int column = 0; column < dim; column += 64) {
        const uint16_t *values = work.values + 2 * column;
        float *numerator = work.numerator + query * dim + column;
        switch (std::min(4, (dim - column) / 16)) {
        case 4: add_values<M, 4>(work.weights, values, dim, num_pairs, corrections, numerator); break;
        case 3: add_values<M, 3>(work.weights, values, dim, num_pairs, corrections, numerator); break;
        case 2: add_values<M, 2>(work.weights, values, dim, num_pairs, corrections, numerator); break;
        default: add_values<M, 1>(work.weights, values, dim, num_pairs, corrections, numerator);
        }
    }
}

// Attend queries [first, last) to keys [H][D][stride] and values [.][E]. Query i sees the first
// `limit + (i - first) / group * step` of `num_keys`.
TARGET void attend_keys(Work &work, int first, int last, int group, const uint16_t *keys, int64_t key_stride,
                        const uint16_t *values, int64_t value_width, int num_keys, int limit, int step) {
    for (int start = 0; start < num_keys; start += KEYS) {
        const int count = std::min(KEYS, num_keys - start);
        pack_keys(keys + start, key_stride, work.head_dim, count, work.keys);
        pack_values(values + start * value_width, value_width, work.head_dim, count, work.values);
        for (int query = first; query < last; query += QUERIES) {
            const int m = std::min(QUERIES, last - query);
            int seen[QUERIES], most = 0;
            for (int i = 0; i < m; ++i) {
                seen[i] = std::max(0, std::min(count, limit + (query + i - first) / group * step - start));
                most = std::max(most, seen[i]);
            }
            if (most == 0) continue;
            switch (m) {
            case 6: attend_tile<6>(work, query, seen, most); break;
            case 5: attend_tile<5>(work, query, seen, most); break;
            case 4: attend_tile<4>(work, query, seen, most); break;
            case 3: attend_tile<3>(work, query, seen, most); break;
            case 2: attend_tile<2>(work, query, seen, most); break;
            default: attend_tile<1>(work, query, seen, most);
            }
        }
    }
}

// Store the key and the value of a row and head as token `at` of `tokens`.
TARGET void store(const TreeStep &step, const Projections &from, int64_t row, int64_t head, uint16_t *keys,
                  uint16_t *values, int64_t tokens, int64_t at) {
    const int64_t dim = step.head_dim, width = step.value_width;
    const uint16_t *key = from.key + row * from.key_stride + head * dim;
    const uint16_t *value = from.value + row * from.value_stride + head * dim;
    for (int64_t d = 0; d < dim; ++d) keys[d * tokens + at] = key[d];
    std::copy_n(value, dim, values + at * width);
    values[at * width + dim] = ONE;
}

// Store the prompt tokens of a step, by every thread of a parallel region.
void store_prompts(const TreeStep &step, const Projections &from) {
    for (int64_t i = 0; i < step.num_slices; ++i) {
        const int64_t *slice = step.slices + 5 * i, first = slice[0], start = slice[3], padded = slice[4];
        if (start < 0) continue;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < step.num_heads * (slice[1] - first); ++task) {
            const int64_t head = task % step.num_heads, row = first + task / step.num_heads;
            store(step, from, row, head, reinterpret_cast<uint16_t *>(step.keys[i]) + head * step.head_dim * padded,
                  reinterpret_cast<uint16_t *>(step.values[i]) + head * padded * step.value_width, padded,
                  start + row - first);
        }
    }
}

// Store a generated token on the row's last page.
TARGET void store_token(const TreeStep &step, const Projections &from, int64_t row, int64_t head) {
    const int64_t last = step.private_tokens[row] - 1, size = step.page_size;
    if (last < 0) return;
    const int64_t place = step.pages[step.page_indptr[row] + last / size] * step.num_heads + head;
    store(step, from, row, head, reinterpret_cast<uint16_t *>(step.pool_keys) + place * step.head_dim * size,
          reinterpret_cast<uint16_t *>(step.pool_values) + place * size * step.value_width, size, last % size);
}

// Attend rows [first_row, last_row) of one KV head to all they see.
TARGET void attend_task(const TreeStep &step, const Projections &from, Scratch &scratch, int64_t first_row,
                        int64_t last_row, int head, float scale, uint16_t *out, float *lse) {
    const int group = step.group_size, dim = step.head_dim, num_heads = step.num_heads;
    const int num_queries = (last_row - first_row) * group;
    Laps laps(step.nanoseconds);
    Work work(scratch, num_queries, dim, scale * 1.44269504f);
    for (int64_t row = first_row; row < last_row; ++row)
        std::copy_n(from.query + row * from.query_stride + head * group * dim, group * dim,
                    work.query + (row - first_row) * group * dim);
    laps.lap(MERGE);
    for (int64_t row = first_row; row < last_row; ++row) store_token(step, from, row, head);
    laps.lap(STORE);
    for (int64_t i = 0; i < step.num_slices; ++i) {
        const int64_t *slice = step.slices + 5 * i;
        const int64_t a = std::max(slice[0], first_row), b = std::min(slice[1], last_row);
        if (a >= b) continue;
        const int64_t padded = slice[4];
        const bool causal = slice[3] >= 0;
        const int limit = causal ? slice[3] + (a - slice[0]) + 1 : slice[2];
        const int num_keys = causal ? slice[3] + (b - slice[0]) : slice[2];
        attend_keys(work, (a - first_row) * group, (b - first_row) * group, group,
                    reinterpret_cast<const uint16_t *>(step.keys[i]) + head * dim * padded, padded,
                    reinterpret_cast<const uint16_t *>(step.values[i]) + head * padded * step.value_width,
                    step.value_width, num_keys, limit, causal);
        laps.lap(causal ? CAUSAL : SHARED);
    }
    const int64_t page_size = step.page_size;
    for (int64_t row = first_row; row < last_row; ++row) {
        int64_t left = step.private_tokens[row];
        for (int64_t i = step.page_indptr[row]; left > 0; ++i, left -= page_size) {
            const int64_t place = step.pages[i] * num_heads + head;
            const int count = std::min(left, page_size);
            attend_keys(work, (row - first_row) * group, (row - first_row + 1) * group, group,
                        reinterpret_cast<const uint16_t *>(step.pool_keys) + place * dim * page_size, page_size,
                        reinterpret_cast<const uint16_t *>(step.pool_values) + place * page_size * step.value_width,
                        step.value_width, count, count, 0);
        }
    }
    laps.lap(PRIVATE);
    for (int q = 0; q < num_queries; ++q) {
        const int64_t place = (first_row + q / group) * num_heads * group + head * group + q % group;
        const __m512 share = _mm512_set1_ps(1.0f / work.total[q]);
        for (int column = 0; column < dim; column += 16) {
            const __m512 value = _mm512_mul_ps(_mm512_loadu_ps(work.numerator + q * dim + column), share);
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + place * dim + column),
                                (__m256i)_mm512_cvtneps_pbh(value));
        }
        lse[place] = (work.high[q] + std::log2(work.total[q])) * 0.69314718f;
    }
    laps.lap(MERGE);
}

} // namespace

int treeshare_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16");
}

// Store the step's keys and values, then attend every row to its path: out [T][H * G][D], lse [T][H * G] float32.
void treeshare_attend(const TreeStep *step, const Projections *from, float scale, uint16_t *out, float *lse) {
    const int64_t num_rows = step->num_rows, num_heads = step->num_heads;
    const int64_t fair_blocks = (TASKS * omp_get_max_threads() + num_heads - 1) / num_heads;
    const int64_t rows = std::min<int64_t>(ROWS, (num_rows + fair_blocks - 1) / fair_blocks);
    const int64_t num_blocks = rows ? (num_rows + rows - 1) / rows : 0;
#pragma omp parallel
    {
        static thread_local Scratch scratch;
        Laps laps(step->nanoseconds);
        store_prompts(*step, *from);
        laps.lap(STORE);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_blocks * num_heads; ++task) {
            const int64_t first = task % num_blocks * rows, last = std::min(first + rows, num_rows);
            attend_task(*step, *from, scratch, first, last, task / num_blocks, scale, out, lse);
        }
    }
}

#else

int treeshare_supported() { return 0; }
void treeshare_attend(const TreeStep *, const Projections *, float, uint16_t *, float *) {}

#endif
