// A linear layer in bfloat16 with AVX-512 BF16 instructions, for any number of rows.
//
// Columns are cut into panels; a thread turns a panel of weights into pairs of neighbouring inputs, sixteen
// outputs side by side, and multiplies every row by it. One output is one running sum over its own inputs in
// their order, so a row's bits do not depend on how many rows there are: nothing has to be padded.
// The weights stay as they are: while one panel is multiplied, the next is fetched, and few rows cost little more
// than reading the weights once.

#include <cstdint>

struct Linear;

extern "C" {
void treeshare_linear(const Linear *, const uint16_t *x, uint16_t *out, int64_t num_rows);
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <algorithm>

#include "common.h"

namespace {

constexpr int PANEL = 48; // outputs of a panel: three vectors of sixteen
constexpr int ROWS = 8;   // rows of a register tile
constexpr int LINES = 3;  // cache lines that a panel has for each pair of inputs

// Sixteen rows of sixteen 32-bit numbers become sixteen columns.
INLINE void transpose(__m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; ++i) { // r[4 k + i] has column 4 l + i of rows 4 k ... 4 k + 3 in its lane l
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[8 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0x88);
        r[4 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[4 + i], 0xdd);
        r[12 + i] = _mm512_shuffle_i32x4(t[8 + i], t[12 + i], 0xdd);
    }
}

// weight [num_outputs][num_inputs] becomes packed [pairs][PANEL]; outputs that are missing count as zero.
TARGET void pack(const uint16_t *weight, int64_t num_inputs, int num_outputs, uint32_t *packed) {
    const int64_t num_pairs = num_inputs / 2;
    for (int first = 0; first < PANEL; first += 16) {
        for (int64_t pair = 0; pair < num_pairs; pair += 16) {
            const __mmask16 mask = first16(num_pairs - pair);
            __m512i r[16];
            for (int i = 0; i < 16; ++i) {
                const uint16_t *source = weight + (first + i) * num_inputs + 2 * pair;
                r[i] = first + i < num_outputs ? _mm512_maskz_loadu_epi32(mask, source) : _mm512_setzero_si512();
                if (first + i + 16 < num_outputs)
                    _mm_prefetch(reinterpret_cast<const char *>(source + 16 * num_inputs), _MM_HINT_T0);
            }
            transpose(r);
            const int count = std::min<int64_t>(16, num_pairs - pair);
            for (int i = 0; i < count; ++i) _mm512_store_si512(packed + (pair + i) * PANEL + first, r[i]);
        }
    }
}

// out[m] = x[m] . panel + bias for M rows; fetches `lines` cache lines a pair from `ahead` on.
template <int M>
TARGET void multiply(const uint16_t *x, int64_t x_stride, const uint32_t *packed, int64_t num_pairs,
                     const uint16_t *bias, int num_outputs, uint16_t *out, int64_t out_stride, const char *ahead,
                     int lines) {
    __m512 sums[M][3];
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < 3; ++j) sums[m][j] = _mm512_setzero_ps();
    for (int64_t pair = 0; pair < num_pairs; ++pair, packed += PANEL) {
        for (int line = 0; line < lines; ++line, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
        const __m512bh b[3] = {pairs(packed), pairs(packed + 16), pairs(packed + 32)};
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
            const __m512bh a = broadcast_pair(x + m * x_stride + 2 * pair);
#pragma GCC unroll 3
            for (int j = 0; j < 3; ++j) sums[m][j] = _mm512_dpbf16_ps(sums[m][j], a, b[j]);
        }
    }
    for (int j = 0; j < 3; ++j) {
        const __mmask16 mask = first16(num_outputs - 16 * j);
        const __m512 offset = bias ? load_bf16(mask, bias + 16 * j) : _mm512_setzero_ps();
        for (int m = 0; m < M; ++m)
            store_bf16(mask, out + m * out_stride + 16 * j, _mm512_add_ps(sums[m][j], offset));
    }
}

} // namespace

void apply_linear(const Linear &linear, const uint16_t *x, uint16_t *out, int64_t num_rows) {
    const int64_t num_inputs = linear.num_inputs, num_outputs = linear.num_outputs, num_pairs = num_inputs / 2;
    const int64_t num_panels = (num_outputs + PANEL - 1) / PANEL, num_tiles = (num_rows + ROWS - 1) / ROWS;
    if (num_tiles == 0) return;
    const int64_t share = (LINES + num_tiles - 1) / num_tiles; // lines to fetch during a tile
    static thread_local Scratch scratch;
    uint32_t *packed = reinterpret_cast<uint32_t *>(scratch.reserve(num_pairs * PANEL * 4));
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
        const int64_t first = panel * PANEL;
        const int count = std::min<int64_t>(PANEL, num_outputs - first);
        pack(linear.weight + first * num_inputs, num_inputs, count, packed);
        const uint16_t *bias = linear.bias ? linear.bias + first : nullptr;
        const char *ahead = reinterpret_cast<const char *>(linear.weight + (first + PANEL) * num_inputs);
        for (int64_t tile = 0; tile < num_tiles; ++tile) {
            const int64_t row = tile * ROWS;
            const int lines = tile * share < LINES ? share : 0;
            const uint16_t *source = x + row * num_inputs;
            uint16_t *target = out + row * num_outputs + first;
#define TILE(M) multiply<M>(source, num_inputs, packed, num_pairs, bias, count, target, num_outputs, ahead, lines)
            switch (std::min<int64_t>(ROWS, num_rows - row)) {
            case 8: TILE(8); break;
            case 7: TILE(7); break;
            case 6: TILE(6); break;
            case 5: TILE(5); break;
            case 4: TILE(4); break;
            case 3: TILE(3); break;
            case 2: TILE(2); break;
            default: TILE(1);
            }
#undef TILE
            ahead += lines * 64 * num_pairs;
        }
    }
}

void treeshare_linear(const Linear *linear, const uint16_t *x, uint16_t *out, int64_t num_rows) {
#pragma omp parallel
    apply_linear(*linear, x, out, num_rows);
}

#else

void treeshare_linear(const Linear *, const uint16_t *, uint16_t *, int64_t) {}

#endif
