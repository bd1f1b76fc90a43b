// Sixteen floats in C++ alone, for a CPU that has no other level. Vectors as GCC and clang give them become whatever
// instructions the compiler may use without being told more. The names are those of avx2.h, and so are the bits of
// every result, those of dot products too.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#define TARGET
#define INLINE __attribute__((always_inline)) static inline
#define LEVEL_EXPORT(name) treeshare_##name##_portable

typedef float Eight __attribute__((vector_size(32)));
typedef int32_t EightInts __attribute__((vector_size(32)));
typedef uint32_t EightWords __attribute__((vector_size(32)));

struct Floats {
    Eight low, high;
};
struct Mask { // all bits of a lane are set, or none
    EightInts low, high;
};

// Register tiles; see avx2.h.
namespace float32_tiles {
constexpr int ATTENTION_VECTORS = 1; // of sixteen columns
constexpr int LINEAR_ROWS = 2;
constexpr int LINEAR_PANEL = 16; // columns
static constexpr int linear_vectors(int /*num_rows*/) { return 1; }
} // namespace float32_tiles

// The same bits as another type of the same size.
template <class To, class From>
INLINE To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "nothing is added or left out");
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

INLINE Eight all_eight(float x) { return Eight{x, x, x, x, x, x, x, x}; } // not 0 + x: that of -0 is 0

// a * b + c, rounded once.
#ifdef __FP_FAST_FMAF
INLINE Eight fused(Eight a, Eight b, Eight c) {
    for (int i = 0; i < 8; ++i) a[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return a;
}
#else
typedef double EightDoubles __attribute__((vector_size(64)));
typedef int64_t EightLongs __attribute__((vector_size(64)));

// In doubles the product is exact. The sum is rounded to odd: an inexact one whose last bit is 0 is moved by one towards
// what was lost, so that it is no tie between two floats that the exact sum is not. Then rounding to a float is the
// only one that counts.
INLINE Eight fused(Eight a, Eight b, Eight c) {
    const EightDoubles product = __builtin_convertvector(a, EightDoubles) * __builtin_convertvector(b, EightDoubles);
    const EightDoubles added = __builtin_convertvector(c, EightDoubles), sum = product + added;
    const EightDoubles from_product = sum - added, from_added = sum - from_product;
    const EightDoubles lost = (product - from_product) + (added - from_added); // exactly; NaN of infinities
    const EightLongs words = bits_as<EightLongs>(sum), is_even = ~words & 1;
    const EightLongs is_inexact = (lost > 0) | (lost < 0);
    const EightLongs away = bits_as<EightLongs>(lost) ^ words; // below 0: towards 0
    const EightLongs step = 1 + 2 * EightLongs(away < 0);
    const EightDoubles odd = bits_as<EightDoubles>(words + (is_even & is_inexact) * step);
    return __builtin_convertvector(odd, Eight);
}
#endif

INLINE EightInts below(int64_t count, int first) { // which lanes from `first` on are below `count`
    const EightInts lanes = {0, 1, 2, 3, 4, 5, 6, 7};
    return lanes < int32_t((count < 0 ? 0 : count > 16 ? 16 : count) - first);
}
INLINE Mask first16(int64_t count) { return {below(count, 0), below(count, 8)}; }

INLINE Floats broadcast(float x) { return {all_eight(x), all_eight(x)}; }
INLINE Floats add(Floats a, Floats b) { return {a.low + b.low, a.high + b.high}; }
INLINE Floats sub(Floats a, Floats b) { return {a.low - b.low, a.high - b.high}; }
INLINE Floats mul(Floats a, Floats b) { return {a.low * b.low, a.high * b.high}; }
INLINE Floats div(Floats a, Floats b) { return {a.low / b.low, a.high / b.high}; }
INLINE Floats mul_add(Floats a, Floats b, Floats c) { return {fused(a.low, b.low, c.low), fused(a.high, b.high, c.high)}; }
INLINE Floats mul_sub(Floats a, Floats b, Floats c) { return mul_add(a, b, {-c.low, -c.high}); }

INLINE Eight select(EightInts mask, Eight x, Eight other) {
    return bits_as<Eight>((mask & bits_as<EightInts>(x)) | (~mask & bits_as<EightInts>(other)));
}
INLINE Eight smaller(Eight a, Eight b) { return select(a < b, a, b); } // b where one is NaN
INLINE Eight larger(Eight a, Eight b) { return select(a > b, a, b); }
INLINE Floats min(Floats a, Floats b) { return {smaller(a.low, b.low), smaller(a.high, b.high)}; }
INLINE Floats max(Floats a, Floats b) { return {larger(a.low, b.low), larger(a.high, b.high)}; }

INLINE Mask greater(Floats a, Floats b) { return {a.low > b.low, a.high > b.high}; }
INLINE Mask at_least(Floats a, Floats b) { return {a.low >= b.low, a.high >= b.high}; }
INLINE Mask equal(Floats a, Floats b) { return {a.low == b.low, a.high == b.high}; }
INLINE Mask not_a_number(Floats x) { return {x.low != x.low, x.high != x.high}; }

INLINE Floats load(const float *source) {
    Floats x;
    std::memcpy(&x, source, sizeof(x));
    return x;
}
INLINE void store(float *target, Floats x) { std::memcpy(target, &x, sizeof(x)); }
INLINE float first_lane(Floats x) { return x.low[0]; }

// In the order of _mm512_reduce_add_ps.
INLINE float sum_lanes(Floats x) {
    const Eight eight = x.high + x.low;
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = eight[i + 4] + eight[i];
    return (four[0] + four[2]) + (four[1] + four[3]);
}
INLINE float max_lanes(Floats x) {
    const Eight eight = larger(x.high, x.low);
    const auto max = [](float a, float b) { return a > b ? a : b; };
    float four[4];
    for (int i = 0; i < 4; ++i) four[i] = max(eight[i + 4], eight[i]);
    return max(max(four[0], four[2]), max(four[1], four[3]));
}

INLINE Eight whole(Eight x) {
    for (int i = 0; i < 8; ++i) x[i] = __builtin_rintf(x[i]);
    return x;
}
INLINE Floats round_whole(Floats x) { return {whole(x.low), whole(x.high)}; }

// y * 2 ** power in two steps, neither of which leaves the exponents that a float has; rounds once, in the second.
INLINE Eight scaled(Eight y, Eight power) {
    const EightInts all = __builtin_convertvector(smaller(power, all_eight(250.0f)), EightInts), half = all >> 1;
    return y * bits_as<Eight>((half + 127) << 23) * bits_as<Eight>((all - half + 127) << 23);
}
INLINE Floats scale_by_power(Floats y, Floats power) { return {scaled(y.low, power.low), scaled(y.high, power.high)}; }

INLINE int bits(Mask mask) {
    int found = 0;
    for (int i = 0; i < 8; ++i) found |= (mask.low[i] & 1 << i) | (mask.high[i] & 1 << (i + 8));
    return found;
}
INLINE EightInts eight_of(int bits) {
    const EightInts places = {1, 2, 4, 8, 16, 32, 64, 128};
    return (places & bits) != 0;
}
INLINE Mask lanes_of(int bits) { return {eight_of(bits), eight_of(bits >> 8)}; }
INLINE Floats select_lanes(Mask mask, Floats x, Floats other) {
    return {select(mask.low, x.low, other.low), select(mask.high, x.high, other.high)};
}
INLINE Floats only(Mask mask, Floats x) { return select_lanes(mask, x, broadcast(0.0f)); } // zero elsewhere
INLINE Floats max_where(Mask mask, Floats a, Floats b) { return select_lanes(mask, max(a, b), a); } // a elsewhere

#include "lanes_in_memory.h"

// In lane i what lane i ^ DISTANCE has.
template <int DISTANCE>
INLINE Floats swap_lanes(Floats x) {
    float values[16], swapped[16];
    store(values, x);
    for (int i = 0; i < 16; ++i) swapped[i] = values[i ^ DISTANCE];
    return load(swapped);
}

// Whole numbers from -127 to 127.
INLINE void store_codes(int8_t *target, Floats x) {
    float values[16];
    store(values, x);
    for (int i = 0; i < 16; ++i) target[i] = static_cast<int8_t>(values[i]);
}

// Up to sixteen numbers; what lies beyond `count` is not touched, and zero when read.
template <class Number>
INLINE void copy_first(int64_t count, Number *target, const Number *source) {
    if (count >= 16)
        std::memcpy(target, source, 16 * sizeof(Number));
    else if (count > 0)
        std::memcpy(target, source, count * sizeof(Number));
}
INLINE Floats load_first(int64_t count, const float *source) {
    float values[16] = {0};
    copy_first(count, values, source);
    return load(values);
}
INLINE void store_first(int64_t count, float *target, Floats x) {
    float values[16];
    store(values, x);
    copy_first(count, target, values);
}

INLINE Floats load_bf16(int64_t count, const uint16_t *source) {
    uint16_t halves[16] = {0};
    copy_first(count, halves, source);
    uint32_t words[16];
    for (int i = 0; i < 16; ++i) words[i] = uint32_t(halves[i]) << 16;
    Floats x;
    std::memcpy(&x, words, sizeof(x));
    return x;
}

// Rounded to bfloat16, in the upper half of each lane; see avx2.h.
INLINE EightWords rounded(Eight x) {
    const EightWords bits = bits_as<EightWords>(x), size = bits & 0x7fffffffu;
    const EightWords is_nan = EightWords(size > 0x7f800000u), is_tiny = EightWords(size < 0x00800000u);
    const EightWords nearest = bits + 0x7fffu + (bits >> 16 & 1u), quiet = bits | 0x00400000u;
    const EightWords number = (is_nan & quiet) | (~is_nan & nearest);
    return (is_tiny & bits & 0x80000000u) | (~is_tiny & number & 0xffff0000u);
}
INLINE Floats round_bf16(Floats x) { return {bits_as<Eight>(rounded(x.low)), bits_as<Eight>(rounded(x.high))}; }

INLINE void store_bf16(int64_t count, uint16_t *target, Floats x) {
    const Floats rounded = round_bf16(x);
    uint32_t words[16];
    std::memcpy(words, &rounded, sizeof(words));
    uint16_t halves[16];
    for (int i = 0; i < 16; ++i) halves[i] = words[i] >> 16;
    copy_first(count, target, halves);
}

// Nothing is fused here: sources are compiled with -ffp-contract=off.
INLINE Floats rounded_once(Floats x) { return x; }

INLINE void accumulate(Floats &sum, Floats a, Floats b) { sum = mul_add(a, b, sum); }

// The sums, for reading after the last add_products.
template <int M, int J>
INLINE const Floats (&complete_sums(const Floats (&sums)[M][J]))[M][J] { return sums; }

// Up to sixteen rows of up to sixteen words, `stride` apart, become columns: target[word * target_stride + row], zeros
// for rows that are missing.
INLINE void transpose_words(const uint32_t *source, int64_t stride, int64_t num_rows, int num_words, uint32_t *target,
                            int64_t target_stride) {
    for (int row = 0; row < 16; ++row)
        for (int word = 0; word < num_words; ++word)
            target[word * target_stride + row] = row < num_rows ? source[row * stride + word] : 0;
}

// The same of pairs of bfloat16, each of which becomes two columns of float32.
INLINE void pack_words(const uint16_t *source, int64_t stride, int64_t num_rows, int num_words, float *target,
                       int64_t target_stride) {
    for (int row = 0; row < 16; ++row)
        for (int number = 0; number < 2 * num_words; ++number) {
            const uint32_t half = row < num_rows ? source[row * stride + number] : 0;
            target[number * target_stride + row] = bits_as<float>(half << 16);
        }
}

#include "float32_products.h"
#include "widened.h"
