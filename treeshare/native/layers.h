// A decoder layer without its attention: a list of operations (structs.h), which says what a layer is made of. The whole
// list is one parallel region: its threads wait for one another after each linear layer, and need not be woken for each
// operation. Operations between two linear layers are computed row by row, all of a row's at once.

#pragma once

#include <cstdint>

#include "common.h"
#ifdef HAS_TILES
#include "tile_linear.h"
#else
#include "linear.h"
#endif
#include "rows.h"

namespace layers {

namespace {

enum Part { MATMUL, REST };

INLINE rows::Numbers numbers_of(const Place &place, const Program<Element> &program, int64_t row, float *own) {
    if (place.buffer == NO_BUFFER) return {nullptr, 0, false};
    const bool is_own = place.buffer == ROW_BUFFER;
    const bool is_float32 = is_own || program.buffers[place.buffer].is_float32;
    const int64_t size = is_float32 ? sizeof(float) : sizeof(Element);
    char *first = reinterpret_cast<char *>(own);
    if (!is_own) {
        const Buffer &buffer = program.buffers[place.buffer];
        first = reinterpret_cast<char *>(buffer.address) + row * buffer.row_stride * size;
    }
    return {first + place.offset * size, place.group_stride * size, is_float32};
}

// Operations [first, last), none of which is a linear layer. Every thread of a parallel region calls it; all have
// finished when it returns.
TARGET void compute_rows(const Program<Element> &program, int64_t first, int64_t last) {
    static thread_local Scratch scratch;
    float *own = reinterpret_cast<float *>(scratch.reserve(program.row_numbers * sizeof(float)));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < program.num_rows; ++row) {
        for (int64_t i = first; i < last; ++i) {
            const Operation<Element> &op = program.operations[i];
            rows::compute_row(op, {numbers_of(op.a, program, row, own), numbers_of(op.b, program, row, own),
                                   numbers_of(op.c, program, row, own), numbers_of(op.out, program, row, own),
                                   op.b.buffer != NO_BUFFER});
        }
    }
}

Element *rows_of(const Place &place, const Program<Element> &program) {
    return reinterpret_cast<Element *>(program.buffers[place.buffer].address);
}

Buffer buffer_of(const Place &place, const Program<Element> &program) {
    Buffer buffer = program.buffers[place.buffer];
    buffer.is_float32 |= sizeof(Element) == sizeof(float);
    buffer.address += place.offset * (buffer.is_float32 ? sizeof(float) : sizeof(Element));
    return buffer;
}

TARGET void apply_int8(const Operation<Element> &op, const Program<Element> &program) {
    const Buffer rows = buffer_of(op.a, program), out = buffer_of(op.out, program);
    program.apply_int8(op.int8, &rows, &out, program.num_rows);
}

bool is_matmul(int64_t kind) { return kind == LINEAR || kind == LINEAR_INT8; }

} // namespace

extern "C" void EXPORT(run)(const Program<Element> *program) {
    const Program<Element> &p = *program;
#pragma omp parallel
    {
        Laps laps(p.nanoseconds);
        for (int64_t first = 0, last; first < p.num_operations; first = last) {
            const Operation<Element> &op = p.operations[first];
            last = first + 1;
            if (is_matmul(op.kind)) {
                if (op.kind == LINEAR)
                    linear::apply(op.linear, rows_of(op.a, p), rows_of(op.out, p), p.num_rows);
                else
                    apply_int8(op, p);
                laps.lap(MATMUL);
                continue;
            }
            while (last < p.num_operations && !is_matmul(p.operations[last].kind)) ++last;
            compute_rows(p, first, last);
            laps.lap(REST);
        }
    }
}

} // namespace layers
