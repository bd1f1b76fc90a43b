// Functions of single numbers that have the same bits on every CPU. A C library has several versions of each, chosen by
// the CPU, whose last bits differ; here are only additions, multiplications and divisions of doubles, each rounded by
// itself: the compiler is told not to fuse them (-ffp-contract=off in pyproject.toml).
//
// Series are Taylor's, as long as their ranges need for a double, so that they can be read without a table.

#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace numbers {
namespace {

static_assert(std::numeric_limits<double>::is_iec559 && FLT_EVAL_METHOD == 0, "numbers are rounded as they are written");

// The nearest whole number, ties to even, of |x| < 2 ** 51.
inline double nearest(double x) {
    constexpr double SHIFT = 0x1.8p52; // beside it a double has no bits behind the point
    return (x + SHIFT) - SHIFT;
}

// 2 ** exponent, of a whole exponent that a normal double has.
inline double power_of_two(int64_t exponent) {
    const uint64_t bits = uint64_t(exponent + 1023) << 52;
    double power;
    std::memcpy(&power, &bits, sizeof(power));
    return power;
}

// The natural logarithm of a normal number above 0: its error is below 2 units of the last place.
inline double log(double x) {
    uint64_t bits;
    std::memcpy(&bits, &x, sizeof(bits));
    int64_t exponent = int64_t(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffff) | 0x3ff0000000000000;
    double m;
    std::memcpy(&m, &bits, sizeof(m));
    if (m > 1.4142135623730951) { // so that log(m) is small on both sides of 1
        m *= 0.5;
        ++exponent;
    }
    // log(m) = 2 atanh(s) = 2 (s + s^3 / 3 + s^5 / 5 + ...), |s| < 0.172
    const double s = (m - 1) / (m + 1), z = s * s;
    double tail = 0;
    for (int n = 21; n >= 3; n -= 2) tail = (tail + 1.0 / n) * z;
    constexpr double LN2_HIGH = 0x1.62e42fefap-1, LN2_LOW = 0x1.cf79abc9e3b3ap-40; // products with the first are exact
    return exponent * LN2_HIGH + (2 * s + (2 * s * tail + exponent * LN2_LOW));
}

// 2 ** x for |x| < 1000.
inline double exp2(double x) {
    constexpr double LN2 = 0x1.62e42fefa39efp-1;
    const double whole = nearest(x), y = (x - whole) * LN2;
    double sum = 1;
    for (int n = 14; n >= 1; --n) sum = 1 + sum * y / n;
    return sum * power_of_two(int64_t(whole));
}

// base ** exponent for a base above 0, to a float's accuracy.
inline float power(double base, double exponent) {
    constexpr double LOG2E = 0x1.71547652b82fep+0;
    return float(exp2(exponent * (log(base) * LOG2E)));
}

// Sine and cosine of |x| < 2 ** 24, rounded correctly to a float but for about one of a million numbers.
struct Turn {
    float sine, cosine;
};
inline Turn turn(float x) {
    // pi / 2 in three parts: products of the first two with a whole number below 2 ** 24 are exact.
    constexpr double PART1 = 0x1.921fb54p+0, PART2 = 0x4.42d184p-32, PART3 = 0x6.9898cc51701b839a252p-60;
    constexpr double PER_QUARTER = 0x1.45f306dc9c883p-1; // 2 / pi
    const double quarters = nearest(x * PER_QUARTER);
    const double r = ((x - quarters * PART1) - quarters * PART2) - quarters * PART3, z = r * r; // |r| < 0.786
    double sine = 1, cosine = 1;
    for (int n = 16; n >= 2; n -= 2) {
        cosine = 1 - cosine * z / (n * (n - 1));
        sine = 1 - sine * z / (n * (n + 1));
    }
    sine *= r;
    const int64_t quarter = int64_t(quarters) & 3;
    const double turned_sine = quarter & 1 ? cosine : sine, turned_cosine = quarter & 1 ? sine : cosine;
    return {float(quarter & 2 ? -turned_sine : turned_sine),
            float(quarter == 1 || quarter == 2 ? -turned_cosine : turned_cosine)};
}

} // namespace
} // namespace numbers
