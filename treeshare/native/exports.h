// The kernels that a level exports; its header defines EXPORT(name). A new kernel also gets a line in structs.cpp and
// in library.py.

#pragma once

#include <cstdint>

#include "structs.h"

extern "C" {

// Store the step's keys and values, then attend every row to its path: out [T][H * G][D], lse [T][H * G] float32.
void EXPORT(attend)(const TreeStep *step, const Projections *from, float scale, uint16_t *out, float *lse);

// x [num_rows][num_inputs], out [num_rows][num_outputs].
void EXPORT(linear)(const Linear *linear, const uint16_t *x, uint16_t *out, int64_t num_rows);

// From a layer's input to queries, keys and values, with rotary positions.
void EXPORT(before_attention)(const Layer *layer, const Activations *activations);

// From attention's result to the layer's output, which overwrites its input.
void EXPORT(after_attention)(const Layer *layer, const Activations *activations);

// The parts of a layer alone, for tests and benchmarks.
void EXPORT(rms_norm)(const uint16_t *x, const uint16_t *weight, uint16_t *out, int64_t num_rows, int64_t width,
                      float epsilon);
void EXPORT(add_rms_norm)(uint16_t *x, const uint16_t *delta, const uint16_t *weight, uint16_t *out, int64_t num_rows,
                          int64_t width, float epsilon);
void EXPORT(rotate)(uint16_t *x, const uint16_t *cosine, const uint16_t *sine, int64_t num_rows, int64_t stride,
                    int64_t num_heads, int64_t head_dim);
void EXPORT(silu_mul)(const uint16_t *gate_up, uint16_t *out, int64_t num_rows, int64_t width);

void EXPORT(draw)(const Draws *draws);
}
