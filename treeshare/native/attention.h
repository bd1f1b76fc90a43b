// Tree attention for one layer of one step.
//
// The keys and values of a step's prompts are stored first, then attended to; those of a decoding row when its last page
// is in the cache anyway. Rows are cut into blocks; a task is one block and one KV head. It walks every segment whose slice
// meets the block, root first, and then the private pages of each row; scores stay in registers and L1, and the running
// result (numerator, maximum, denominator) in L2. What a row sums up, and in which order, depends on its own keys alone:
// blocks of KEYS keys from the start of each segment, one after the other. So a row's bits do not depend on the other rows.
//
// With a window or chunks a row does not see all keys before it. It takes no part in a block of which it sees nothing, so
// that its running result stays as it is. Of a block, keys are left out that no row of the task sees, whole UNITs of
// them: the others stand in the same pairs and tiles as in the whole block, and what comes before a row's first key
// has the weight zero, which adds nothing to a sum. So it does not matter what the other rows see.
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

#include "attention_work.h"
#include "coded_attention.h"
#include "common.h"
#include "numbers.h"

#ifdef HAS_TILES
#include "tile_attention.h"
#else
#include "vector_attention.h"
#endif

namespace attention {
namespace {

constexpr int TASKS = 3;   // minimum for each thread, if there are enough rows, so that no thread waits long at the end

enum Kind { SHARED, CAUSAL, PRIVATE, MERGE, STORE }; // MERGE: gathering the queries, normalising the result

// Keys [D][key_stride] and values [count][value_stride] of a block.
struct Source {
    const Element *keys, *values;
    int64_t key_stride, value_stride;
};

TARGET void pack(Work &work, Coded &coded, const Source &source, int count) {
    if (coded.multiply) {
        code_keys(coded, source.keys, source.key_stride, count);
        code_values(coded, source.values, source.value_stride, work.value_width, count);
    } else {
        pack_keys(source.keys, source.key_stride, work.key_width, count, work.keys);
        pack_values(source.values, source.value_stride, work.value_width, count, work.values);
    }
}

// Pack the `count` keys of a block, and their values, of one KV head: pieces side by side, the first from its token
// `used` on. What lies in several pieces is gathered first.
TARGET void pack_block(Work &work, Coded &coded, const Piece *piece, int64_t used, int head, int64_t stored_width,
                       int count) {
    const int key_width = work.key_width, value_width = work.value_width;
    const auto keys_of = [&](const Piece &p) {
        return reinterpret_cast<const Element *>(p.keys) + head * key_width * p.padded_tokens;
    };
    const auto values_of = [&](const Piece &p) {
        return reinterpret_cast<const Element *>(p.values) + head * p.padded_tokens * stored_width;
    };
    if (piece->num_tokens - used >= count) {
        pack(work, coded, {keys_of(*piece) + used, values_of(*piece) + used * stored_width, piece->padded_tokens, stored_width},
             count);
        return;
    }
    for (int place = 0; place < count; ++piece, used = 0) {
        const int64_t num = std::min<int64_t>(piece->num_tokens - used, count - place);
        const Element *keys = keys_of(*piece) + used, *values = values_of(*piece) + used * stored_width;
        for (int d = 0; d < key_width; ++d)
            std::copy_n(keys + d * piece->padded_tokens, num, work.gathered_keys + d * KEYS + place);
        for (int64_t i = 0; i < num; ++i)
            std::copy_n(values + i * stored_width, value_width, work.gathered_values + (place + i) * value_width);
        place += num;
    }
    pack(work, coded, {work.gathered_keys, work.gathered_values, KEYS, value_width}, count);
}

// Attend queries [first, last) to a packed block of `count` keys, in codes where `coded` is given. A tile ends before a
// query that sees none of them.
TARGET void attend_block(Work &work, Coded *coded, int first, int last, int group, int count, const Sight &sight) {
    const int limit = coded ? TOGETHER : QUERIES;
    for (int query = first; query < last;) {
        Tile tile;
        tile.first = query;
        tile.max_seen = 0;
        tile.changes = work.bend > 0;
        int m = 0;
        for (; m < limit && query + m < last; ++m) {
            const int row = (query + m - first) / group;
            tile.hidden[m] = sight.first(row);
            tile.seen[m] = sight.end(row, count);
            if (tile.hidden[m] >= tile.seen[m]) break;
            tile.max_seen = std::max(tile.max_seen, tile.seen[m]);
            tile.changes |= tile.hidden[m] > 0;
        }
        tile.num = m;
        if (m > 0 && coded) attend_coded(work, *coded, tile);
        if (m > 0 && !coded) attend_tile(work, tile, count);
        query += std::max(m, 1);
    }
}

// How many keys from number `start` on lie in one block, of `num_keys` in all.
int keys_of_block(int64_t start, int64_t num_keys) {
    return std::min<int64_t>(KEYS - start % KEYS, num_keys - start);
}

// Attend queries [first, last) to the first `num_keys` keys of pieces that lie side by side, block after block.
TARGET void attend_pieces(Work &work, Coded &coded, int first, int last, int group, const Piece *piece, int head,
                          int64_t stored_width, int num_keys, const Sight &sight) {
    int64_t used = sight.begin((last - first) / group); // of *piece
    for (int start = used, count; start < num_keys; start += count) {
        count = keys_of_block(start, num_keys);
        for (; used >= piece->num_tokens; ++piece) used -= piece->num_tokens;
        pack_block(work, coded, piece, used, head, stored_width, count);
        attend_block(work, coded.multiply ? &coded : nullptr, first, last, group, count, sight.from(start));
        used += count;
    }
}

// Store the value of a row and head as a row of stored ones.
TARGET void store_value(const TreeStep &step, const Projections<Element> &from, int64_t row, int64_t head,
                        Element *target) {
    const int64_t width = step.value_width;
    std::copy_n(from.value + row * from.value_stride + head * width, width, target);
    target[width] = ONE;
}

// Store the prompt tokens of a step, by every thread of a parallel region.
void store_prompts(const TreeStep &step, const Projections<Element> &from) {
    for (int64_t i = 0; i < step.num_slices; ++i) {
        const Slice &slice = step.slices[i];
        if (!slice.causal) continue;
        const Piece &own = step.pieces[slice.first_piece + slice.num_pieces - 1];
        const int64_t padded = own.padded_tokens, width = step.key_width;
#pragma omp for schedule(static)
        for (int64_t task = 0; task < step.num_kv_heads * (slice.last_row - slice.first_row); ++task) {
            const int64_t head = task % step.num_kv_heads, row = slice.first_row + task / step.num_kv_heads;
            const int64_t at = slice.first_own_token + row - slice.first_row;
            Element *keys = reinterpret_cast<Element *>(own.keys) + head * width * padded + at;
            const Element *key = from.key + row * from.key_stride + head * width;
            for (int64_t d = 0; d < width; ++d) keys[d * padded] = key[d];
            store_value(step, from, row, head,
                        reinterpret_cast<Element *>(own.values) + (head * padded + at) * step.stored_width);
        }
    }
}

INLINE void fetch_numbers(const Element *first, int64_t count) {
    for (int64_t place = 0; place < count; place += 64 / sizeof(Element)) __builtin_prefetch(first + place, 0, 2);
}

// The private pages of a step's rows, of one KV head: keys [C][D], values [C][E].
struct Pages {
    const TreeStep &step;
    int head;

    int64_t place(int64_t number) const { return step.pages[number] * step.num_kv_heads + head; }
    Element *keys(int64_t number) const {
        return reinterpret_cast<Element *>(step.pool_keys) + place(number) * step.page_size * step.key_width;
    }
    Element *values(int64_t number) const {
        return reinterpret_cast<Element *>(step.pool_values) + place(number) * step.page_size * step.stored_width;
    }
    // Tokens on page `number`, counted from the step's first one, of a row.
    int64_t num_tokens(int64_t row, int64_t number) const {
        return std::min(step.private_tokens[row] - (number - step.page_indptr[row]) * step.page_size, step.page_size);
    }
    // Of these, how many at its start the row does not see.
    int64_t num_hidden(int64_t row, int64_t number) const {
        return step.hidden_tokens && number == step.page_indptr[row] ? step.hidden_tokens[row] : 0;
    }
    TARGET void fetch(int64_t row, int64_t number) const {
        const int64_t count = num_tokens(row, number);
        fetch_numbers(keys(number), count * step.key_width);
        fetch_numbers(values(number), count * step.stored_width);
    }
    // Store the token that a row has generated on its last page.
    TARGET void store_token(const Projections<Element> &from, int64_t row, int64_t number) const {
        const int64_t at = (step.private_tokens[row] - 1) % step.page_size, width = step.key_width;
        std::copy_n(from.key + row * from.key_stride + head * width, width, keys(number) + at * width);
        store_value(step, from, row, head, values(number) + at * step.stored_width);
    }
    // Attend a row's queries [first, last) to a page.
    TARGET void attend(Work &work, int first, int last, int64_t row, int64_t number) const {
        const int64_t tokens = num_tokens(row, number), hidden = num_hidden(row, number);
        const Sight sight = {tokens, 0, &hidden, 0};
        for (int64_t start = sight.begin(1), count; start < tokens; start += count) {
            count = keys_of_block(start, tokens);
            pack_token_keys(keys(number) + start * step.key_width, step.key_width, count, work.keys);
            pack_values(values(number) + start * step.stored_width, step.stored_width, work.value_width, count,
                        work.values);
            attend_block(work, nullptr, first, last, step.group_size, count, sight.from(start));
        }
    }
};

// Store the tokens that rows [first_row, last_row) have generated, and attend the rows to their private pages, of one KV
// head; while one page is attended to, the next is fetched.
TARGET void attend_pages(const TreeStep &step, const Projections<Element> &from, Work &work, int64_t first_row,
                         int64_t last_row, int head, Laps &laps) {
    const Pages pages = {step, head};
    const int64_t *indptr = step.page_indptr, last = indptr[last_row];
    int64_t next_row = first_row;
    for (int64_t row = first_row; row < last_row; ++row) {
        const int first_query = (row - first_row) * step.group_size;
        for (int64_t number = indptr[row]; number < indptr[row + 1]; ++number) {
            if (number + 1 < last) {
                while (number + 1 >= indptr[next_row + 1]) ++next_row;
                pages.fetch(next_row, number + 1);
            }
            if (from.key && number + 1 == indptr[row + 1]) {
                laps.lap(PRIVATE);
                pages.store_token(from, row, number);
                laps.lap(STORE);
            }
            pages.attend(work, first_query, first_query + step.group_size, row, number);
        }
    }
    laps.lap(PRIVATE);
}

TARGET float power_of_two(float x) { return first_lane(exp2_lanes<7>(broadcast(x))); }

// Write the result of query number q of a task, which is row `row` and query head `head` of the step.
TARGET void write_result(const TreeStep &step, const Work &work, int q, int64_t row, int64_t head, Element *out,
                         float *lse) {
    float maximum = work.maximum[q], denominator = work.denominator[q], factor = 1.0f;
    if (step.sinks) { // one more score, to which no value belongs
        const float sink = step.sinks[head] * LOG2E, larger = std::max(maximum, sink);
        factor = power_of_two(maximum - larger);
        denominator = std::fma(denominator, factor, power_of_two(sink - larger));
        maximum = larger;
    }
    const int64_t place = row * step.num_kv_heads * step.group_size + head;
    const Floats share = broadcast(factor / denominator);
    const float *numerator = work.numerator + q * work.value_width;
    for (int64_t column = 0; column < step.value_width; column += 16)
        store_elements(step.value_width - column, out + place * step.value_width + column,
                       mul(load(numerator + column), share));
    lse[place] = maximum * 0.6931471805599453 + numbers::log(denominator);
}

// Attend rows [first_row, last_row) of one KV head to all they see.
TARGET void attend_task(const TreeStep &step, const Projections<Element> &from, Scratch (&scratch)[2], int64_t first_row,
                        int64_t last_row, int kv_head, float scale, Element *out, float *lse) {
    const int group = step.group_size, width = step.key_width, stride = query_stride(width);
    const int num_queries = (last_row - first_row) * group;
    Laps laps(step.nanoseconds);
    Work work(scratch[0], num_queries, step, scale);
    Coded coded(scratch[1], work, num_queries, step);
    for (int q = 0; q < num_queries; ++q) {
        const Element *row = from.query + (first_row + q / group) * from.query_stride;
        const Element *query = row + (kv_head * group + q % group) * width;
        copy_operands(query, width, work.query + q * stride);
        if (coded.multiply) coded.take_query(q, query);
        std::fill_n(work.query + q * stride + width, stride - width, Operand(0));
    }
    laps.lap(MERGE);
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
        const int64_t *first_seen = step.first_seen ? step.first_seen + a : nullptr;
        attend_pieces(work, coded, (a - first_row) * group, (b - first_row) * group, group, pieces, kv_head, step.stored_width,
                      num_keys, {limit, slice.causal, first_seen, slice.first_position});
        laps.lap(slice.causal ? CAUSAL : SHARED);
    }
    attend_pages(step, from, work, first_row, last_row, kv_head, laps);
    for (int q = 0; q < num_queries; ++q)
        write_result(step, work, q, first_row + q / group, kv_head * group + q % group, out, lse);
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
        static thread_local Scratch scratch[2];
        Laps laps(step->nanoseconds);
#ifdef HAS_TILES
        const tiles::Session session;
#endif
        if (from->key) store_prompts(*step, *from);
        laps.lap(STORE);
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_blocks * num_kv_heads; ++task) {
            const int64_t first = task % num_blocks * rows, last = std::min(first + rows, num_rows);
            attend_task(*step, *from, scratch, first, last, task / num_blocks, scale, out, lse);
        }
    }
}

} // namespace attention
