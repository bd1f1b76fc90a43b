// What the headers of a level of instructions and of an element define. All names below are checked here as they are
// compiled; the kernels are written in them. A new level is its header, a source for each element like
// kernels_avx2_float32.cpp, which includes both, a line in levels.cpp with the CPU's features, a line in library.py and
// the files' names in pyproject.toml. The elements, bfloat16.h and float32.h, are the same for all levels: they are
// written in a level's vectors, and a level has bfloat16's conversions and dot products.
//
// Results must be the same bits on all levels, except those of bfloat16's add_products on levels that have dot products
// of it; the others include widened.h, and agree there, too. tests/native/test_levels.py compares. A level with tiles,
// HAS_TILES, has an order of its own for them, see amx.h, and for attention's exponentials: tile_linear.h and
// tile_attention.h take the place of what is written in add_products.

#pragma once

#include <cstdint>
#include <type_traits>

// TARGET             the attribute of a function that uses the level's instructions
// INLINE             the same for a static function that is always inlined
// LEVEL_EXPORT(name) the name of an exported kernel, which ends in the name of the level
// EXPORT(name)       the same with the name of the element before it
#if !defined(TARGET) || !defined(INLINE) || !defined(LEVEL_EXPORT) || !defined(EXPORT)
#error "a level's header defines TARGET, INLINE and LEVEL_EXPORT, an element's EXPORT"
#endif

namespace level {
namespace {

#define REQUIRE(condition) static_assert(condition, "a level's header must give: " #condition)
#define REQUIRE_TYPE(type, expression)                                                                                 \
    static_assert(std::is_same<decltype(expression), type>::value, "a level's header must give: " #type " " #expression)

// Types.
REQUIRE(sizeof(Floats) == 64); // Floats: sixteen of them, passed by value
REQUIRE(sizeof(Mask) >= 2); // Mask: a truth value for each lane
REQUIRE((std::is_same<Element, float>::value || std::is_same<Element, uint16_t>::value)); // uint16_t: a bfloat16
REQUIRE((std::is_same<Operand, float>::value || std::is_same<Operand, Element>::value)); // a dot product's left side
REQUIRE((std::is_same<Packed, float>::value || std::is_same<Packed, Element>::value)); // its right side
REQUIRE(STEP * sizeof(Packed) == 4 || STEP * sizeof(Packed) == 8); // inputs of add_products
REQUIRE((std::is_same<decltype(ONE), const Element>::value)); // the number 1
REQUIRE(LINEAR_RUN > 0); // words that a linear layer sums up before it adds them to the words before
REQUIRE(EXP2_DEGREE > 0); // of the polynomial whose error does not show beside the element's

// Register tiles, in the level's namespaces float32_tiles and bfloat16_tiles, which also has Operand and STRIP. A tile
// of attention has 6 rows, one of a linear layer up to LINEAR_ROWS.
REQUIRE(ATTENTION_VECTORS >= 1 && ATTENTION_VECTORS <= 4); // of sixteen columns
REQUIRE(LINEAR_ROWS >= 1 && LINEAR_ROWS <= 8);
REQUIRE(LINEAR_PANEL % 16 == 0); // columns whose weights are packed together
REQUIRE(LINEAR_PANEL % (16 * linear_vectors(1)) == 0); // vectors of sixteen columns for so many rows
REQUIRE(LINEAR_PANEL % (16 * linear_vectors(LINEAR_ROWS)) == 0);
REQUIRE(STRIP % 16 == 0 && 16 * ATTENTION_VECTORS % STRIP == 0); // numbers that `interleave` takes of each row

// Arithmetic, lane by lane.
constexpr Floats *x = nullptr;
constexpr Mask *mask = nullptr;
constexpr Operand *operands = nullptr;
REQUIRE_TYPE(Floats, broadcast(0.0f)); // one number in every lane
REQUIRE_TYPE(Floats, add(*x, *x));
REQUIRE_TYPE(Floats, sub(*x, *x));
REQUIRE_TYPE(Floats, mul(*x, *x));
REQUIRE_TYPE(Floats, div(*x, *x));
REQUIRE_TYPE(Floats, min(*x, *x));
REQUIRE_TYPE(Floats, max(*x, *x)); // the second where either is NaN
REQUIRE_TYPE(Floats, mul_add(*x, *x, *x)); // a * b + c, rounded once
REQUIRE_TYPE(Floats, mul_sub(*x, *x, *x)); // a * b - c, rounded once
REQUIRE_TYPE(Floats, round_whole(*x)); // to the nearest whole number, ties to even
REQUIRE_TYPE(Floats, scale_by_power(*x, *x)); // y * 2 ** power for a whole power >= -150
REQUIRE_TYPE(Floats, rounded_once(*x)); // x, which no compiler fuses with what is computed from it
REQUIRE((std::is_void<decltype(accumulate(*const_cast<Floats *>(x), *x, *x))>::value)); // sum += a * b, rounded once
REQUIRE_TYPE(Floats, round_bf16(*x)); // as store_bf16 rounds

// Lanes together.
REQUIRE_TYPE(float, sum_lanes(*x)); // in the order of _mm512_reduce_add_ps
REQUIRE_TYPE(float, max_lanes(*x));
REQUIRE_TYPE(float, first_lane(*x));
REQUIRE_TYPE(Floats, swap_lanes<8>(*x)); // in lane i what lane i ^ 8 has; also for 1, 2 and 4

// Masks.
REQUIRE_TYPE(Mask, first16(int64_t())); // the first `count` lanes
REQUIRE_TYPE(Mask, greater(*x, *x));
REQUIRE_TYPE(Mask, at_least(*x, *x));
REQUIRE_TYPE(Mask, equal(*x, *x));
REQUIRE_TYPE(Mask, not_a_number(*x));
REQUIRE((std::is_convertible<decltype(bits(*mask)), int>::value)); // a bit for each lane, the first lane's lowest
REQUIRE_TYPE(Mask, lanes_of(int())); // the lanes whose bits are set
REQUIRE_TYPE(Floats, only(*mask, *x)); // zero elsewhere
REQUIRE_TYPE(Floats, select_lanes(*mask, *x, *x)); // the second elsewhere
REQUIRE_TYPE(Floats, max_where(*mask, *x, *x)); // the first elsewhere
REQUIRE_TYPE(int, compress(static_cast<float *>(nullptr), *mask, *x)); // store masked lanes side by side; how many

// Memory. Beyond `count` lanes nothing is touched, and zero is read.
constexpr const float *floats = nullptr;
constexpr const uint16_t *halves = nullptr;
constexpr const Element *elements = nullptr;
REQUIRE_TYPE(Floats, load(floats));
REQUIRE_TYPE(void, store(static_cast<float *>(nullptr), *x));
REQUIRE_TYPE(Floats, load_first(int64_t(), floats));
REQUIRE_TYPE(void, store_first(int64_t(), static_cast<float *>(nullptr), *x));
REQUIRE_TYPE(Floats, load_bf16(int64_t(), halves));
REQUIRE_TYPE(void, store_bf16(int64_t(), static_cast<uint16_t *>(nullptr), *x)); // to nearest, ties to even; tiny to 0
REQUIRE_TYPE(Floats, load_elements(int64_t(), elements));
REQUIRE_TYPE(void, store_elements(int64_t(), static_cast<Element *>(nullptr), *x)); // rounded to the element
REQUIRE_TYPE(Floats, round_to_element(*x)); // as store_elements rounds
REQUIRE_TYPE(void, store_codes(static_cast<int8_t *>(nullptr), *x)); // whole numbers from -127 to 127

// Dot products: a left side of operands, a right side of words, each STEP neighbouring inputs, sixteen outputs side by
// side.
REQUIRE_TYPE(void, copy_operands(elements, int64_t(), operands));
REQUIRE_TYPE(const Operand *, as_operands(elements, int64_t(), operands)); // where they are, or copied to the last
REQUIRE_TYPE(void, store_operands(operands, *x));
REQUIRE_TYPE(void, interleave(elements, int64_t(), int(), int(), static_cast<Packed *>(nullptr)));
REQUIRE_TYPE(void, transpose_words(static_cast<const uint32_t *>(nullptr), int64_t(), int64_t(), int(),
                                   static_cast<uint32_t *>(nullptr), int64_t()));
REQUIRE_TYPE(void, pack_words(elements, int64_t(), int64_t(), int(),
                              static_cast<Packed *>(nullptr), int64_t()));
constexpr Floats (*sums)[1][1] = nullptr;
REQUIRE_TYPE(void, (add_products<1, 1>(*sums, operands, int64_t(), static_cast<const Packed *>(nullptr)))); // sums[m][j] += a[m] . b[j]
// The sums, to be read after the last add_products.
REQUIRE((std::is_convertible<decltype(complete_sums<1, 1>(*sums)[0][0]), Floats>::value));

#undef REQUIRE_TYPE
#undef REQUIRE

} // namespace
} // namespace level
