// The functions of numbers.h for arrays, for what a model computes outside of the kernels.

#include "numbers.h"

extern "C" {

void treeshare_log(const double *x, double *out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = numbers::log(x[i]);
}

void treeshare_cos(const float *x, float *out, int64_t count) {
#pragma omp parallel for if (count >= 1 << 14)
    for (int64_t i = 0; i < count; ++i) out[i] = numbers::turn(x[i]).cosine;
}

void treeshare_sin(const float *x, float *out, int64_t count) {
#pragma omp parallel for if (count >= 1 << 14)
    for (int64_t i = 0; i < count; ++i) out[i] = numbers::turn(x[i]).sine;
}

void treeshare_power(const double *base, const float *exponents, float *out, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out[i] = numbers::power(*base, exponents[i]);
}
}
