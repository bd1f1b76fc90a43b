// What the kernels share beside their vectors: exponentials, scratch memory, a stopwatch.
//
// All but the exported functions is local to a level's source (static, or in an unnamed namespace): the library holds
// the same names compiled for other instructions, and a linker would take any of them.

#pragma once

#include <chrono>
#include <cstdint>
#include <cstdlib>

#include "exports.h"
#include "level.h"

// 2 ** x for finite x; about 0 from -150 down, infinite from 128 up; NaN for NaN. The relative error is below 4e-6 for a polynomial
// of degree 5 and below 2e-7 for one of degree 7.
template <int DEGREE>
INLINE Floats exp2_lanes(Floats x) {
    static_assert(DEGREE == 5 || DEGREE == 7, "no other polynomials are here");
    x = max(broadcast(-150.0f), x); // in this order, so that a NaN stays one
    const Floats whole = round_whole(x), f = sub(x, whole);
    Floats y = broadcast(1.3333558e-3f);
    if (DEGREE == 7) {
        y = mul_add(broadcast(1.5252734e-5f), f, broadcast(1.5403530e-4f));
        y = mul_add(y, f, broadcast(1.3333558e-3f));
    }
    y = mul_add(y, f, broadcast(9.6181291e-3f));
    y = mul_add(y, f, broadcast(5.5504109e-2f));
    y = mul_add(y, f, broadcast(2.4022651e-1f));
    y = mul_add(y, f, broadcast(6.9314718e-1f));
    y = mul_add(y, f, broadcast(1.0f));
    return scale_by_power(y, whole);
}

INLINE Floats absolute(Floats x) { return max(x, sub(broadcast(0.0f), x)); }

// exp(x) as good for a large x as for a small one: what rounding the power takes away is multiplied in.
INLINE Floats exp_any(Floats x) {
    x = min(broadcast(200.0f), max(broadcast(-200.0f), x)); // in this order, so that NaN stays
    const Floats log2e = broadcast(1.44269504f), power = rounded_once(mul(x, log2e));
    const Floats rest = mul_add(x, broadcast(1.92596299e-8f), mul_sub(x, log2e, power));
    return mul(exp2_lanes<EXP2_DEGREE>(power), mul_add(rest, broadcast(0.69314718f), broadcast(1.0f)));
}

INLINE Floats tanh_lanes(Floats x) {
    const Floats size = absolute(x), square = mul(x, x), one = broadcast(1.0f);
    Floats series = broadcast(0.0218694885f); // x (1 - x^2 / 3 + 2 x^4 / 15 - ...): near zero the other form cancels
    series = mul_add(series, square, broadcast(-0.0539682540f));
    series = mul_add(series, square, broadcast(0.1333333333f));
    series = mul_add(series, square, broadcast(-0.3333333333f));
    const Floats small = mul_add(mul(series, square), x, x);
    const Floats power = exp_any(mul(broadcast(-2.0f), size));
    const Floats large = div(sub(one, power), add(one, power));
    const Floats large_signed = select_lanes(greater(broadcast(0.0f), x), sub(broadcast(0.0f), large), large);
    return select_lanes(greater(broadcast(0.25f), size), small, large_signed);
}

template <int M, int J>
INLINE void clear(Floats (&sums)[M][J]) {
    for (int m = 0; m < M; ++m)
        for (int j = 0; j < J; ++j) sums[m][j] = broadcast(0.0f);
}

namespace {

// Memory of one thread that is kept from call to call.
struct Scratch {
    char *memory = nullptr;
    size_t size = 0;
    ~Scratch() { std::free(memory); }
    char *reserve(size_t wanted) {
        if (wanted > size) {
            std::free(memory);
            size = (wanted + 4095) / 4096 * 4096;
            memory = static_cast<char *>(std::aligned_alloc(4096, size));
            if (!memory) std::abort();
        }
        return memory;
    }
};

// One thread's stopwatch: charges the time since its last lap.
struct Laps {
    int64_t *sums;
    std::chrono::steady_clock::time_point last;
    explicit Laps(int64_t *sums) : sums(sums) {
        if (sums) last = std::chrono::steady_clock::now();
    }
    void lap(int kind) {
        if (!sums) return;
        const auto now = std::chrono::steady_clock::now();
        const int64_t passed = std::chrono::duration_cast<std::chrono::nanoseconds>(now - last).count();
        __atomic_fetch_add(sums + kind, passed, __ATOMIC_RELAXED);
        last = now;
    }
};

} // namespace
