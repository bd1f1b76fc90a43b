// Tiles of bfloat16 beside AVX-512's vectors: eight registers of sixteen rows of 64 bytes, and an instruction that
// multiplies two of them. Linear layers (tile_linear.h) and attention (tile_attention.h) use them.
//
// Bits. With a [16][32], b [16][16][2] and c [16][16], the instruction computes for every c[m][n], in float32,
//     even = odd = 0
//     for k in 0 ... 15: even += a[m][2 k] * b[k][n][0]; odd += a[m][2 k + 1] * b[k][n][1]    (rounded once each)
//     c[m][n] += even + odd
// where numbers that are too small for a normal one count as zero and become zero. The order is the level's own, and
// the same for any number of rows: every product goes through a tile. It does not matter which side is a. What is
// missing in a tile is zero; a product with it changes no bit but the sign of a zero.
//
// The instructions are written as assembly: compilers' own functions do not say which memory they read.

#pragma once

#include "avx512.h"

#undef TARGET
#undef LEVEL_EXPORT
#define TARGET __attribute__((target(AMX_FEATURES)))
#define LEVEL_EXPORT(name) treeshare_##name##_amx
#define HAS_TILES

namespace tiles {
namespace {

constexpr int SIDE = 16;          // rows of a tile, and 32-bit numbers of a row
constexpr int DEPTH = 32;         // bfloat16 of a row
constexpr int SIZE = SIDE * SIDE; // 32-bit numbers of a tile

// While one lives, its thread can use tiles. It relies on nothing that others left behind, and leaves nothing: tiles
// that are in use make every context switch dearer.
struct Session {
    TARGET Session() {
        struct alignas(64) Configuration {
            uint8_t palette, start_row, reserved[14];
            uint16_t row_bytes[16];
            uint8_t num_rows[16];
        };
        static_assert(sizeof(Configuration) == 64, "as the instruction reads it");
        static constexpr Configuration whole = {
            1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE}};
        __asm__ volatile("ldtilecfg %0" ::"m"(whole));
    }
    TARGET ~Session() { __asm__ volatile("tilerelease"); }
};

template <int TILE>
INLINE void clear() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

// Rows of 64 bytes, `stride` bytes apart.
template <int TILE>
INLINE void load(const void *source, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(stride), "i"(TILE) : "memory");
}
// The same of what is not needed again soon: it leaves L1 to what is.
template <int TILE>
INLINE void load_once(const void *source, int64_t stride) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(source), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
INLINE void store(void *target, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(target), "r"(stride), "i"(TILE) : "memory");
}

// Tile C += tile A . tile B
template <int C, int A, int B>
INLINE void multiply() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

// The same of codes of 8 bits with a sign, four neighbours side by side, and whole sums.
template <int C, int A, int B>
INLINE void multiply_codes() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

} // namespace
} // namespace tiles
