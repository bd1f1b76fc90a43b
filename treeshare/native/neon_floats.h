// Sixteen floats in four registers of four: what both levels of NEON have in common. The names are those of floats512.h,
// and so are the bits of every result. Only instructions that every aarch64 CPU has; a level's header adds dot products
// of bfloat16.

#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#define TARGET
#define INLINE __attribute__((always_inline)) static inline

struct Floats { // not an array: gcc would keep it in memory
    float32x4_t q0, q1, q2, q3;
};
struct Mask { // all bits of a lane are set, or none
    uint32x4_t q0, q1, q2, q3;
};

// Register tiles. A tile of attention has 6 rows, see QUERIES: with 16 columns its sums take 24 of 32 registers.
namespace float32_tiles {
constexpr int ATTENTION_VECTORS = 1; // of sixteen columns
constexpr int LINEAR_ROWS = 6;
constexpr int LINEAR_PANEL = 32; // columns
// Vectors of sixteen columns, for so many rows.
static constexpr int linear_vectors(int num_rows) { return num_rows <= 3 ? 2 : 1; }
} // namespace float32_tiles

#define UNARY(type, name, function)                                                                                    \
    INLINE type name(Floats x) { return {function(x.q0), function(x.q1), function(x.q2), function(x.q3)}; }
#define BINARY(type, name, function)                                                                                   \
    INLINE type name(Floats a, Floats b) {                                                                             \
        return {function(a.q0, b.q0), function(a.q1, b.q1), function(a.q2, b.q2), function(a.q3, b.q3)};               \
    }
#define TERNARY(First, name, function)                                                                                 \
    INLINE Floats name(First a, Floats b, Floats c) {                                                                  \
        return {function(a.q0, b.q0, c.q0), function(a.q1, b.q1, c.q1), function(a.q2, b.q2, c.q2),                    \
                function(a.q3, b.q3, c.q3)};                                                                           \
    }

// By comparison: the instructions for it take the number where x86 takes the second operand, NaN or not.
INLINE float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
INLINE float32x4_t smaller(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
INLINE float32x4_t fused_sum(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
INLINE float32x4_t fused_difference(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(vnegq_f32(c), a, b); }
INLINE uint32x4_t unordered(float32x4_t x) { return vmvnq_u32(vceqq_f32(x, x)); }

BINARY(Floats, add, vaddq_f32)
BINARY(Floats, sub, vsubq_f32)
BINARY(Floats, mul, vmulq_f32)
BINARY(Floats, div, vdivq_f32)
BINARY(Floats, min, smaller)
BINARY(Floats, max, larger) // b where one is NaN
TERNARY(Floats, mul_add, fused_sum)
TERNARY(Floats, mul_sub, fused_difference)
UNARY(Floats, round_whole, vrndnq_f32)
BINARY(Mask, greater, vcgtq_f32)
BINARY(Mask, at_least, vcgeq_f32)
BINARY(Mask, equal, vceqq_f32)
UNARY(Mask, not_a_number, unordered)
TERNARY(Mask, select_lanes, vbslq_f32)

INLINE Floats broadcast(float x) {
    const float32x4_t four = vdupq_n_f32(x);
    return {four, four, four, four};
}
INLINE Floats load(const float *source) {
    return {vld1q_f32(source), vld1q_f32(source + 4), vld1q_f32(source + 8), vld1q_f32(source + 12)};
}
INLINE void store(float *target, Floats x) {
    vst1q_f32(target, x.q0);
    vst1q_f32(target + 4, x.q1);
    vst1q_f32(target + 8, x.q2);
    vst1q_f32(target + 12, x.q3);
}
INLINE float first_lane(Floats x) { return vgetq_lane_f32(x.q0, 0); }
INLINE Floats only(Mask mask, Floats x) { return select_lanes(mask, x, broadcast(0.0f)); } // zero elsewhere
INLINE Floats max_where(Mask mask, Floats a, Floats b) { return select_lanes(mask, max(a, b), a); } // a elsewhere

// Which lanes are below `count`.
INLINE uint32x4_t below(int64_t count, int first) {
    static const int32_t lanes[4] = {0, 1, 2, 3};
    return vcltq_s32(vld1q_s32(lanes), vdupq_n_s32((count < 0 ? 0 : count > 16 ? 16 : count) - first));
}
INLINE Mask first16(int64_t count) { return {below(count, 0), below(count, 4), below(count, 8), below(count, 12)}; }

// A bit for each lane, the first lane's lowest.
INLINE int four_bits(uint32x4_t mask) {
    static const uint32_t places[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, vld1q_u32(places)));
}
INLINE int bits(Mask mask) {
    return four_bits(mask.q0) | four_bits(mask.q1) << 4 | four_bits(mask.q2) << 8 | four_bits(mask.q3) << 12;
}
INLINE uint32x4_t four_of(int bits) {
    static const uint32_t places[4] = {1, 2, 4, 8};
    return vtstq_u32(vdupq_n_u32(bits), vld1q_u32(places));
}
INLINE Mask lanes_of(int bits) { return {four_of(bits), four_of(bits >> 4), four_of(bits >> 8), four_of(bits >> 12)}; }

// In the order of _mm512_reduce_add_ps: halves of sixteen, of eight, of four, of two.
INLINE float sum_lanes(Floats x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.q3, x.q1), vaddq_f32(x.q2, x.q0));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
INLINE float max_lanes(Floats x) {
    const float32x4_t four = larger(larger(x.q3, x.q1), larger(x.q2, x.q0));
    const float32x4_t two = larger(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(larger(two, vextq_f32(two, two, 1)), 0);
}

// x as it is: a compiler does not fuse the multiplication that it comes from with a later addition.
INLINE Floats rounded_once(Floats x) {
    __asm__("" : "+w"(x.q0), "+w"(x.q1), "+w"(x.q2), "+w"(x.q3));
    return x;
}

// y * 2 ** power in two steps, neither of which leaves the exponents that a float has; rounds once, in the second.
INLINE float32x4_t scaled(float32x4_t y, float32x4_t power) {
    const int32x4_t all = vcvtnq_s32_f32(smaller(power, vdupq_n_f32(250.0f))), half = vshrq_n_s32(all, 1);
    const int32x4_t bias = vdupq_n_s32(127);
    const int32x4_t first = vshlq_n_s32(vaddq_s32(half, bias), 23);
    const int32x4_t second = vshlq_n_s32(vaddq_s32(vsubq_s32(all, half), bias), 23);
    return vmulq_f32(vmulq_f32(y, vreinterpretq_f32_s32(first)), vreinterpretq_f32_s32(second));
}
BINARY(Floats, scaled_lanes, scaled)
INLINE Floats scale_by_power(Floats y, Floats power) { return rounded_once(scaled_lanes(y, power)); }

// sum += a * b, rounded once. By members: whole structs would be copied through memory.
INLINE void accumulate(Floats &sum, Floats a, Floats b) {
    sum.q0 = vfmaq_f32(sum.q0, a.q0, b.q0);
    sum.q1 = vfmaq_f32(sum.q1, a.q1, b.q1);
    sum.q2 = vfmaq_f32(sum.q2, a.q2, b.q2);
    sum.q3 = vfmaq_f32(sum.q3, a.q3, b.q3);
}

// In lane i what lane i ^ DISTANCE has.
template <int DISTANCE>
INLINE float32x4_t swap_four(float32x4_t x) {
    if constexpr (DISTANCE == 1) return vrev64q_f32(x);
    if constexpr (DISTANCE == 2) return vextq_f32(x, x, 2);
}
template <int DISTANCE>
INLINE Floats swap_lanes(Floats x) {
    if constexpr (DISTANCE == 8)
        return {x.q2, x.q3, x.q0, x.q1};
    else if constexpr (DISTANCE == 4)
        return {x.q1, x.q0, x.q3, x.q2};
    else
        return {swap_four<DISTANCE>(x.q0), swap_four<DISTANCE>(x.q1), swap_four<DISTANCE>(x.q2), swap_four<DISTANCE>(x.q3)};
}

// Whole numbers from -127 to 127.
INLINE int16x8_t narrowed(float32x4_t a, float32x4_t b) {
    return vcombine_s16(vmovn_s32(vcvtq_s32_f32(a)), vmovn_s32(vcvtq_s32_f32(b)));
}
INLINE void store_codes(int8_t *target, Floats x) {
    vst1q_s8(target, vcombine_s8(vmovn_s16(narrowed(x.q0, x.q1)), vmovn_s16(narrowed(x.q2, x.q3))));
}

#include "lanes_in_memory.h"

// Up to sixteen numbers; what lies beyond `count` is not touched, and zero when read.
template <class Number>
INLINE void copy_first(int64_t count, const Number *source, Number *target) {
    for (int64_t i = 0; i < 16 && i < count; ++i) target[i] = source[i];
}
INLINE Floats load_first(int64_t count, const float *source) {
    if (count >= 16) return load(source);
    float values[16] = {0};
    copy_first(count, source, values);
    return load(values);
}
INLINE void store_first(int64_t count, float *target, Floats x) {
    if (count >= 16) return store(target, x);
    float values[16];
    store(values, x);
    copy_first(count, values, target);
}

// Sixteen bfloat16.
struct Halves {
    uint16x8_t low, high;
};
INLINE Halves load_halves(int64_t count, const uint16_t *source) {
    uint16_t values[16] = {0};
    if (count < 16) {
        copy_first(count, source, values);
        source = values;
    }
    return {vld1q_u16(source), vld1q_u16(source + 8)};
}
INLINE void store_halves(int64_t count, uint16_t *target, Halves x) {
    uint16_t values[16], *place = count < 16 ? values : target;
    vst1q_u16(place, x.low);
    vst1q_u16(place + 8, x.high);
    if (count < 16) copy_first(count, values, target);
}

INLINE float32x4_t widen(uint16x4_t halves) { return vreinterpretq_f32_u32(vshll_n_u16(halves, 16)); }
INLINE Floats load_bf16(int64_t count, const uint16_t *source) {
    const Halves x = load_halves(count, source);
    return {widen(vget_low_u16(x.low)), widen(vget_high_u16(x.low)), widen(vget_low_u16(x.high)),
            widen(vget_high_u16(x.high))};
}

// Rounded to bfloat16, in the upper half of each lane, as vcvtneps2bf16 does it: to nearest, ties to even; NaN stays
// NaN, and what is too small for a normal number becomes zero of its sign (where the CPU's own bfcvtn keeps it).
INLINE uint32x4_t rounded(float32x4_t x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x), upper = vdupq_n_u32(0xffff0000);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    uint32x4_t result = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    result = vbslq_u32(vceqq_f32(x, x), result, vorrq_u32(bits, vdupq_n_u32(0x00400000)));
    const uint32x4_t tiny = vcltq_u32(vandq_u32(bits, vdupq_n_u32(0x7fffffff)), vdupq_n_u32(0x00800000));
    return vbslq_u32(tiny, vandq_u32(bits, vdupq_n_u32(0x80000000)), vandq_u32(result, upper));
}
INLINE uint16x8_t upper_halves(float32x4_t a, float32x4_t b) {
    return vuzp2q_u16(vreinterpretq_u16_u32(rounded(a)), vreinterpretq_u16_u32(rounded(b)));
}
INLINE Halves to_halves(Floats x) { return {upper_halves(x.q0, x.q1), upper_halves(x.q2, x.q3)}; }
INLINE void store_bf16(int64_t count, uint16_t *target, Floats x) { store_halves(count, target, to_halves(x)); }

// Rounded to bfloat16, as a layer's result is when it is stored.
INLINE float32x4_t rounded_floats(float32x4_t x) { return vreinterpretq_f32_u32(rounded(x)); }
UNARY(Floats, round_bf16, rounded_floats)

// Four rows of four words become four columns.
INLINE void transpose(uint32x4_t (&r)[4]) {
    const uint32x4_t a = vtrn1q_u32(r[0], r[1]), b = vtrn2q_u32(r[0], r[1]);
    const uint32x4_t c = vtrn1q_u32(r[2], r[3]), d = vtrn2q_u32(r[2], r[3]);
    const auto join = [](uint32x2_t low, uint32x2_t high) { return vcombine_u32(low, high); };
    r[0] = join(vget_low_u32(a), vget_low_u32(c));
    r[1] = join(vget_low_u32(b), vget_low_u32(d));
    r[2] = join(vget_high_u32(a), vget_high_u32(c));
    r[3] = join(vget_high_u32(b), vget_high_u32(d));
}

INLINE uint32x4_t load_words(int count, const uint32_t *source) {
    if (count >= 4) return vld1q_u32(source);
    uint32_t words[4] = {0};
    for (int i = 0; i < count; ++i) words[i] = source[i];
    return vld1q_u32(words);
}

// Up to sixteen rows of up to sixteen words, `stride` apart, become columns: target[word * target_stride + row], zeros
// for rows that are missing. Fetches the sixteen rows below.
INLINE void transpose_words(const uint32_t *source, int64_t stride, int64_t num_rows, int num_words, uint32_t *target,
                            int64_t target_stride) {
    for (int row = 0; row < 16; ++row)
        if (row + 16 < num_rows) __builtin_prefetch(source + (row + 16) * stride, 0, 3);
    for (int row = 0; row < 16; row += 4) {
        for (int word = 0; word < num_words; word += 4) {
            uint32x4_t r[4];
            for (int i = 0; i < 4; ++i)
                r[i] = row + i < num_rows ? load_words(num_words - word, source + (row + i) * stride + word) : vdupq_n_u32(0);
            transpose(r);
            for (int i = 0; i < 4 && word + i < num_words; ++i)
                vst1q_u32(target + (word + i) * target_stride + row, r[i]);
        }
    }
}

#undef UNARY
#undef BINARY
#undef TERNARY
