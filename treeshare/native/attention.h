// Tree attention for one layer of one step.
//
// The step's keys and values are stored first, then attended to. Rows are cut into blocks; a task is one block and
// one KV head. It walks every segment whose slice meets the block, root first, and then the private pages of each
// row; scores stay in registers and L1, and the running result (numerator, maximum, denominator) in L2. What a row sums
// up, and in which order, depends on its own keys alone: blocks of KEYS keys from the start of each segment, one after
// the other. So a row's bits do not depend on the other rows.
//
// Nothing here knows about Python or torch; its callers hand over addresses. Built without linking an OpenMP library:
// torch's own is already loaded, and two of them would compete for the cores.
//
// Shapes are named as in structs.h: T, H, G, D, E, N, C.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "common.h"
#include "numbers.h"

namespace attention {

namespace {

constexpr int ROWS = 64;   // maximum number of packed rows of a task
constexpr int TASKS = 3;   // minimum for each thread, if there are enough rows, so that no thread waits long at the end
constexpr int KEYS = KEY_BLOCK; // packed keys and values of a block fit into L2 beside the rows
constexpr int GROUP = 16 * ATTENTION_VECTORS; // keys of a register tile
#ifdef HAS_TILES
constexpr int QUERIES = tiles::SIDE;  // query rows of a register tile
constexpr int64_t PAD = tiles::DEPTH; // a query is filled up with zeros to a multiple of it
#else
constexpr int QUERIES = 6;
constexpr int64_t PAD = 1;
#endif

// Numbers from one query to the next.
constexpr int64_t query_stride(int64_t head_dim) { return (head_dim + PAD - 1) / PAD * PAD; }

enum Kind { SHARED, CAUSAL, PRIVATE, MERGE, STORE }; // MERGE: gathering the queries, normalising the result

// One task's working set.
struct Work {
    Operand *query;     // [ROWS * G][query_stride(D)], and as much as a register tile reads behind the last
    Packed *keys;       // [KEYS / GROUP][D / STEP][GROUP][STEP]
    Packed *values;     // [KEYS / STEP][D][STEP]
    Element *gathered_keys;    // [D][KEYS]: of a block that lies in several pieces
    Element *gathered_values;  // [KEYS][D]
    float *scores;      // [QUERIES][KEYS]
    Operand *weights;   // [QUERIES][KEYS]
    float *numerator;   // [ROWS * G][D]
    float *maximum;     // [ROWS * G], and so on: of the scaled scores so far, as powers of 2
    float *denominator; // [ROWS * G], and so on
    int head_dim;
    float scale;        // of scores, times log2(e)

    Work(Scratch &scratch, int num_queries, int head_dim, float scale) : head_dim(head_dim), scale(scale) {
        const size_t sizes[] = {size_t(num_queries + QUERIES) * query_stride(head_dim) * sizeof(Operand),
                                size_t(KEYS) * query_stride(head_dim) * sizeof(Packed),
                                size_t(KEYS) * head_dim * sizeof(Packed) + 64, // `interleave` may write past the last
                                size_t(KEYS) * head_dim * sizeof(Element),
                                size_t(KEYS) * head_dim * sizeof(Element),
                                size_t(QUERIES) * KEYS * 4,
                                size_t(QUERIES) * KEYS * sizeof(Operand),
                                size_t(num_queries) * head_dim * 4,
                                size_t(num_queries + QUERIES) * 4,
                                size_t(num_queries + QUERIES) * 4};
        size_t offsets[11] = {0};
        for (int i = 0; i < 10; ++i) offsets[i + 1] = offsets[i] + (sizes[i] + 63) / 64 * 64;
        char *memory = scratch.reserve(offsets[10]);
        query = reinterpret_cast<Operand *>(memory + offsets[0]);
        keys = reinterpret_cast<Packed *>(memory + offsets[1]);
        values = reinterpret_cast<Packed *>(memory + offsets[2]);
        gathered_keys = reinterpret_cast<Element *>(memory + offsets[3]);
        gathered_values = reinterpret_cast<Element *>(memory + offsets[4]);
        scores = reinterpret_cast<float *>(memory + offsets[5]);
        weights = reinterpret_cast<Operand *>(memory + offsets[6]);
        numerator = reinterpret_cast<float *>(memory + offsets[7]);
        maximum = reinterpret_cast<float *>(memory + offsets[8]);
        denominator = reinterpret_cast<float *>(memory + offsets[9]);
        std::fill_n(numerator, size_t(num_queries) * head_dim, 0.0f);
        std::fill_n(maximum, num_queries, -std::numeric_limits<float>::infinity());
        std::fill_n(denominator, num_queries, 0.0f);
    }
};

} // namespace
} // namespace attention

#ifdef HAS_TILES
#include "tile_attention.h"
#else
#include "vector_attention.h"
#endif

namespace attention {
namespace {

// Pack the `count` keys of a block, and their values, of one KV head: pieces side by side, the first from its token
// `used` on. What lies in several pieces is gathered first.
TARGET void pack_block(Work &work, const Piece *piece, int64_t used, int head, int64_t value_width, int count) {
    const int dim = work.head_dim;
    const auto keys_of = [&](const Piece &p) {
        return reinterpret_cast<const Element *>(p.keys) + head * dim * p.padded_tokens;
    };
    const auto values_of = [&](const Piece &p) {
        return reinterpret_cast<const Element *>(p.values) + head * p.padded_tokens * value_width;
    };
    if (piece->num_tokens - used >= count) {
        pack_keys(keys_of(*piece) + used, piece->padded_tokens, dim, count, work.keys);
        pack_values(values_of(*piece) + used * value_width, value_width, dim, count, work.values);
        return;
    }
    for (int place = 0; place < count; ++piece, used = 0) {
        const int64_t num = std::min<int64_t>(piece->num_tokens - used, count - place);
        const Element *keys = keys_of(*piece) + used, *values = values_of(*piece) + used * value_width;
        for (int d = 0; d < dim; ++d)
            std::copy_n(keys + d * piece->padded_tokens, num, work.gathered_keys + d * KEYS + place);
        for (int64_t i = 0; i < num; ++i)
            std::copy_n(values + i * value_width, dim, work.gathered_values + (place + i) * dim);
        place += num;
    }
    pack_keys(work.gathered_keys, KEYS, dim, count, work.keys);
    pack_values(work.gathered_values, dim, dim, count, work.values);
}

// Attend queries [first, last) to a packed block of `count` keys, of which query i sees the first
// `limit + (i - first) / group * step`.
TARGET void attend_block(Work &work, int first, int last, int group, int count, int limit, int step) {
    for (int query = first; query < last; query += QUERIES) {
        const int m = std::min(QUERIES, last - query);
        int seen[QUERIES], max_seen = 0;
        for (int i = 0; i < m; ++i) {
            seen[i] = std::max(0, std::min(count, limit + (query + i - first) / group * step));
            max_seen = std::max(max_seen, seen[i]);
        }
        if (max_seen == 0) continue;
        attend_queries(work, query, m, seen, max_seen, count);
    }
}

// Attend queries [first, last) to the first `num_keys` keys of pieces that lie side by side, block after block.
TARGET void attend_pieces(Work &work, int first, int last, int group, const Piece *piece, int head,
                          int64_t value_width, int num_keys, int limit, int step) {
    int64_t used = 0; // of *piece
    for (int start = 0; start < num_keys; start += KEYS) {
        const int count = std::min(KEYS, num_keys - start);
        for (; used >= piece->num_tokens; ++piece) used -= piece->num_tokens;
        pack_block(work, piece, used, head, value_width, count);
        attend_block(work, first, last, group, count, limit - start, step);
        used += count;
    }
}

// Store the key and the value of a row and head as token `at` of `tokens`.
TARGET void store_pair(const TreeStep &step, const Projections<Element> &from, int64_t row, int64_t head, Element *keys,
                       Element *values, int64_t tokens, int64_t at) {
    const int64_t dim = step.head_dim, width = step.value_width;
    const Element *key = from.key + row * from.key_stride + head * dim;
    const Element *value = from.value + row * from.value_stride + head * dim;
    for (int64_t d = 0; d < dim; ++d) keys[d * tokens + at] = key[d];
    std::copy_n(value, dim, values + at * width);
    values[at * width + dim] = ONE;
}

// Store the prompt tokens of a step, by every thread of a parallel region.
void store_prompts(const TreeStep &step, const Projections<Element> &from) {
    for (int64_t i = 0; i < step.num_slices; ++i) {
        const Slice &slice = step.slices[i];
        if (!slice.causal) continue;
        const Piece &own = step.pieces[slice.first_piece + slice.num_pieces - 1];
        const int64_t padded = own.padded_tokens;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < step.num_kv_heads * (slice.last_row - slice.first_row); ++task) {
            const int64_t head = task % step.num_kv_heads, row = slice.first_row + task / step.num_kv_heads;
            store_pair(step, from, row, head, reinterpret_cast<Element *>(own.keys) + head * step.head_dim * padded,
                       reinterpret_cast<Element *>(own.values) + head * padded * step.value_width, padded,
                       slice.first_own_token + row - slice.first_row);
        }
    }
}

// Store a generated token on the row's last page.
TARGET void store_token(const TreeStep &step, const Projections<Element> &from, int64_t row, int64_t head) {
    const int64_t last = step.private_tokens[row] - 1, size = step.page_size;
    if (last < 0) return;
    const int64_t place = step.pages[step.page_indptr[row] + last / size] * step.num_kv_heads + head;
    store_pair(step, from, row, head, reinterpret_cast<Element *>(step.pool_keys) + place * step.head_dim * size,
               reinterpret_cast<Element *>(step.pool_values) + place * size * step.value_width, size, last % size);
}

// Fetch what lies at an address, of one KV head of a page.
INLINE void fetch(uint64_t address, int64_t size) {
    for (int64_t place = 0; place < size; place += 64)
        __builtin_prefetch(reinterpret_cast<const char *>(address) + place, 0, 2);
}

// Attend rows [first_row, last_row) of one KV head to their private pages; while one is attended to, the next is fetched.
TARGET void attend_pages(const TreeStep &step, Work &work, int64_t first_row, int64_t last_row, int head) {
    const int64_t size = step.page_size, last = step.page_indptr[last_row];
    const int64_t key_bytes = step.head_dim * size * sizeof(Element);
    const int64_t value_bytes = size * step.value_width * sizeof(Element);
    const int group = step.group_size;
    for (int64_t row = first_row; row < last_row; ++row) {
        int64_t left = step.private_tokens[row];
        for (int64_t i = step.page_indptr[row]; left > 0; ++i, left -= size) {
            if (i + 1 < last) {
                const int64_t next = step.pages[i + 1] * step.num_kv_heads + head;
                fetch(step.pool_keys + next * key_bytes, key_bytes);
                fetch(step.pool_values + next * value_bytes, value_bytes);
            }
            const int64_t place = step.pages[i] * step.num_kv_heads, count = std::min(left, size);
            const Piece page = {step.pool_keys + place * key_bytes, step.pool_values + place * value_bytes, size, count};
            attend_pieces(work, (row - first_row) * group, (row - first_row + 1) * group, group, &page, head,
                          step.value_width, count, count, 0);
        }
    }
}

// Attend rows [first_row, last_row) of one KV head to all they see.
TARGET void attend_task(const TreeStep &step, const Projections<Element> &from, Scratch &scratch, int64_t first_row,
                        int64_t last_row, int head, float scale, Element *out, float *lse) {
    const int group = step.group_size, dim = step.head_dim, num_kv_heads = step.num_kv_heads;
    const int num_queries = (last_row - first_row) * group;
    Laps laps(step.nanoseconds);
    Work work(scratch, num_queries, dim, scale * 1.44269504f);
    for (int q = 0; q < num_queries; ++q) {
        const Element *row = from.query + (first_row + q / group) * from.query_stride;
        const Element *query = row + (head * group + q % group) * dim;
        copy_operands(query, dim, work.query + q * query_stride(dim));
        std::fill_n(work.query + q * query_stride(dim) + dim, query_stride(dim) - dim, Operand(0));
    }
    laps.lap(MERGE);
    for (int64_t row = first_row; row < last_row; ++row) store_token(step, from, row, head);
    laps.lap(STORE);
    for (int64_t i = 0; i < step.num_slices; ++i) {
        const Slice &slice = step.slices[i];
        const int64_t a = std::max(slice.first_row, first_row), b = std::min(slice.last_row, last_row);
        if (a >= b) continue;
        const Piece *pieces = step.pieces + slice.first_piece;
        int num_keys = slice.num_keys, limit = num_keys;
        if (slice.causal) {
            const int before = num_keys - pieces[slice.num_pieces - 1].num_tokens + slice.first_own_token;
            limit = before + (a - slice.first_row) + 1;
            num_keys = before + (b - slice.first_row);
        }
        attend_pieces(work, (a - first_row) * group, (b - first_row) * group, group, pieces, head, step.value_width,
                      num_keys, limit, slice.causal);
        laps.lap(slice.causal ? CAUSAL : SHARED);
    }
    attend_pages(step, work, first_row, last_row, head);
    laps.lap(PRIVATE);
    for (int q = 0; q < num_queries; ++q) {
        const int64_t place = (first_row + q / group) * num_kv_heads * group + head * group + q % group;
        const Floats share = broadcast(1.0f / work.denominator[q]);
        for (int column = 0; column < dim; column += 16)
            store_elements(16, out + place * dim + column, mul(load(work.numerator + q * dim + column), share));
        lse[place] = work.maximum[q] * 0.6931471805599453 + numbers::log(work.denominator[q]);
    }
    laps.lap(MERGE);
}

} // namespace

extern "C" void EXPORT(attend)(const TreeStep *step, const Projections<Element> *from, float scale, Element *out,
                               float *lse) {
    const int64_t num_rows = step->num_rows, num_kv_heads = step->num_kv_heads;
    const int64_t min_blocks = (TASKS * omp_get_max_threads() + num_kv_heads - 1) / num_kv_heads;
    const int64_t rows = std::min<int64_t>(ROWS, (num_rows + min_blocks - 1) / min_blocks);
    const int64_t num_blocks = rows ? (num_rows + rows - 1) / rows : 0;
#pragma omp parallel
    {
        static thread_local Scratch scratch;
        Laps laps(step->nanoseconds);
#ifdef HAS_TILES
        const tiles::Session session;
#endif
        store_prompts(*step, *from);
        laps.lap(STORE);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_blocks * num_kv_heads; ++task) {
            const int64_t first = task % num_blocks * rows, last = std::min(first + rows, num_rows);
            attend_task(*step, *from, scratch, first, last, task / num_blocks, scale, out, lse);
        }
    }
}

} // namespace attention
