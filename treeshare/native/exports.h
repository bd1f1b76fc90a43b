// The kernels that a level exports for each element; EXPORT(name) is the name with both, LEVEL_EXPORT(name) that of a
// kernel that a level has once. A new kernel also gets a line in structs.cpp and in library.py.

#pragma once

#include <cstdint>

#include "structs.h"

extern "C" {

// Store the step's keys and values, then attend every row to its path: out [T][H * G][D], lse [T][H * G] float32.
void EXPORT(attend)(const TreeStep *step, const Projections<Element> *from, float scale, Element *out, float *lse);

// x [num_rows][num_inputs], out [num_rows][num_outputs].
void EXPORT(linear)(const Linear<Element> *linear, const Element *x, Element *out, int64_t num_rows);

// Part of a decoder layer. A linear layer's operands are whole rows of their buffers.
void EXPORT(run)(const Program<Element> *program);

void LEVEL_EXPORT(draw)(const Draws *draws);

// In place, x <= 0: exp(x).
void LEVEL_EXPORT(exp)(float *x, int64_t count);

// Sums of blocks of 256 weights.
void LEVEL_EXPORT(sum_blocks)(const float *weights, double *sums, int64_t num_blocks);

// x, out [num_rows][vocab_size].
void LEVEL_EXPORT(log_softmax)(const float *x, float *out, int64_t num_rows, int64_t vocab_size);

// Functions of single numbers, the same for all levels; see numbers.h.
void treeshare_log(const double *x, double *out, int64_t count);
void treeshare_cos(const float *x, float *out, int64_t count);
void treeshare_sin(const float *x, float *out, int64_t count);
void treeshare_power(const double *base, const float *exponents, float *out, int64_t count);
}
