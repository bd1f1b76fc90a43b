// The kernels that a level exports for each element; EXPORT(name) is the name with both, LEVEL_EXPORT(name) that of a
// kernel that a level has once. A new kernel also gets a line in structs.cpp and in library.py.

#pragma once

#include <cstdint>

#include "structs.h"

extern "C" {

// Store the step's keys and values, then attend every row to its path: out [T][H * G][V], lse [T][H * G] float32.
void EXPORT(attend)(const TreeStep *step, const Projections<Element> *from, float scale, Element *out, float *lse);

// x [num_rows][num_inputs], out [num_rows][num_outputs].
void EXPORT(linear)(const Linear<Element> *linear, const Element *x, Element *out, int64_t num_rows);

// Part of a decoder layer. A linear layer's operands are whole rows of their buffers; those of one in codes may be parts.
void EXPORT(run)(const Program<Element> *program);

// A mixture of experts.
void EXPORT(experts)(const Experts<Element> *experts);

void LEVEL_EXPORT(draw)(const Draws *draws);

// In place, x <= 0: exp(x).
void LEVEL_EXPORT(exp)(float *x, int64_t count);

// Sums of blocks of 256 weights.
void LEVEL_EXPORT(sum_blocks)(const float *weights, double *sums, int64_t num_blocks);

// x, out [num_rows][vocab_size].
void LEVEL_EXPORT(log_softmax)(const float *x, float *out, int64_t num_rows, int64_t vocab_size);

// Codes of 8 bits: rows of numbers become rows of codes; these, as rows [first, first + num_rows) of weights, are put
// into a layer's memory; rows of a layer's weights become numbers again; x [num_rows] of codes times a layer's weights.
void LEVEL_EXPORT(quantize_rows)(const Int8Linear *linear, const Buffer *x, const Buffer *rows, int64_t num_rows);
void LEVEL_EXPORT(pack_int8)(const Int8Linear *linear, const Buffer *rows, int64_t first, int64_t num_rows);
void LEVEL_EXPORT(lookup_int8)(const Int8Linear *table, const int64_t *ids, const Buffer *out, int64_t num_rows);
void LEVEL_EXPORT(linear_int8)(const Int8Linear *linear, const Buffer *rows, const Buffer *out, int64_t num_rows);

// As linear_int8, for threads that are together already: each of a parallel region calls it.
void LEVEL_EXPORT(apply_int8)(const Int8Linear *linear, const Buffer *rows, const Buffer *out, int64_t num_rows);

// Rows of codes times panels of codes, by the thread that calls.
void LEVEL_EXPORT(multiply_codes)(const CodeProducts *given);

// Functions of single numbers, the same for all levels; see numbers.h.
void treeshare_log(const double *x, double *out, int64_t count);
void treeshare_cos(const float *x, float *out, int64_t count);
void treeshare_sin(const float *x, float *out, int64_t count);
void treeshare_power(const double *base, const float *exponents, float *out, int64_t count);
}
