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
}
