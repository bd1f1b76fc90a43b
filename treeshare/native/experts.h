// A layer's mixture of experts, for any number of rows.
//
// In one parallel region rows are sorted by expert, each expert is applied to its own, and each row's sum is taken in the
// order in which the router named its experts.
//
// A row of an expert goes through linear layers, whose bits do not depend on how many rows there are, and through
// operations of its own. So a row's bits do not depend on which other rows chose the same experts.

#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "layers.h"

namespace experts {
namespace {

constexpr int64_t TASKS = 4; // of a thread, so that experts with many rows do not keep it while others wait

bool is_expert(const Experts<Element> &e, int64_t number) { return number >= 0 && number < e.num_experts; }

// Where each expert's rows begin, and which of them each row has: in the order of rows. By one thread.
void sort_rows(const Experts<Element> &e) {
    const int64_t count = e.num_rows * e.top_k;
    std::fill_n(e.indptr, e.num_experts + 1, 0);
    for (int64_t i = 0; i < count; ++i)
        if (is_expert(e, e.chosen[i])) ++e.indptr[e.chosen[i] + 1];
    for (int64_t i = 0; i < e.num_experts; ++i) e.indptr[i + 1] += e.indptr[i];
    for (int64_t i = 0; i < count; ++i)
        e.places[i] = is_expert(e, e.chosen[i]) ? e.indptr[e.chosen[i]]++ : -1;
    for (int64_t i = e.num_experts; i > 0; --i) e.indptr[i] = e.indptr[i - 1];
    e.indptr[0] = 0;
}

// Each expert's rows, side by side. Every thread of a parallel region calls this and what follows; all have finished
// when one returns.
TARGET void gather(const Experts<Element> &e) {
    const int64_t num_inputs = e.up->num_inputs;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < e.num_rows; ++row)
        for (int64_t k = row * e.top_k; k < (row + 1) * e.top_k; ++k)
            if (e.places[k] >= 0)
                std::copy_n(e.x + row * num_inputs, num_inputs, e.gathered + e.places[k] * num_inputs);
}

// Each expert's linear layer, applied to its own rows.
TARGET void apply_each(const Experts<Element> &e, const Linear<Element> *linears, const Element *x, int64_t x_stride,
                       Element *out) {
    const int64_t num_outputs = linears->num_outputs, num_panels = (num_outputs + linear::PANEL - 1) / linear::PANEL;
    int64_t num_busy = 0;
    for (int64_t i = 0; i < e.num_experts; ++i) num_busy += e.indptr[i] < e.indptr[i + 1];
    const int64_t wanted = (TASKS * omp_get_num_threads() + num_busy - 1) / std::max<int64_t>(num_busy, 1);
    const int64_t num_parts = std::min(wanted, num_panels);
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < e.num_experts * num_parts; ++task) {
        const int64_t expert = task / num_parts, part = task % num_parts, row = e.indptr[expert];
        const linear::Rows rows = {x + row * x_stride, x_stride, out + row * num_outputs, e.indptr[expert + 1] - row};
        if (rows.num_rows > 0)
            linear::apply_part(linears[expert], rows, num_panels * part / num_parts, num_panels * (part + 1) / num_parts);
    }
}

// Numbers that belong to two halves by turns become two halves.
TARGET void separate(Element *rows, int64_t num_rows, int64_t width) {
    static thread_local Scratch scratch;
    Element *copy = reinterpret_cast<Element *>(scratch.reserve(width * sizeof(Element)));
#pragma omp for schedule(static)
    for (int64_t row = 0; row < num_rows; ++row) {
        Element *numbers = rows + row * width;
        std::copy_n(numbers, width, copy);
        for (int64_t i = 0; i < width / 2; ++i) {
            numbers[i] = copy[2 * i];
            numbers[width / 2 + i] = copy[2 * i + 1];
        }
    }
}

// Each row's sum over its experts.
TARGET void add_up(const Experts<Element> &e) {
    const int64_t num_outputs = e.down->num_outputs;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < e.num_rows; ++row) {
        for (int64_t i = 0; i < num_outputs; i += 16) {
            const int64_t left = num_outputs - i;
            Floats sum = broadcast(0.0f);
            for (int64_t k = row * e.top_k; k < (row + 1) * e.top_k; ++k) {
                if (e.places[k] < 0) continue;
                const Floats given = load_elements(left, e.given + e.places[k] * num_outputs + i);
                sum = add(sum, rows::rounded_if(e.rounds_products, mul(given, broadcast(e.weights[k]))));
            }
            store_elements(left, e.out + row * num_outputs + i, sum);
        }
    }
}

} // namespace

extern "C" void EXPORT(experts)(const Experts<Element> *experts) {
    const Experts<Element> &e = *experts;
    if (e.num_rows == 0) return;
    sort_rows(e);
    Program<Element> gate = *e.gate;
    gate.num_rows = e.indptr[e.num_experts];
    Element *ups = reinterpret_cast<Element *>(gate.buffers[0].address);
    const Buffer &gated = gate.buffers[e.gated];
#pragma omp parallel
    {
        Laps laps(gate.nanoseconds);
        gather(e);
        laps.lap(layers::REST);
        apply_each(e, e.up, e.gathered, e.up->num_inputs, ups);
        laps.lap(layers::MATMUL);
        if (e.takes_turns) separate(ups, gate.num_rows, e.up->num_outputs);
        layers::compute_rows(gate, 0, gate.num_operations);
        laps.lap(layers::REST);
        apply_each(e, e.down, reinterpret_cast<const Element *>(gated.address), gated.row_stride, e.given);
        laps.lap(layers::MATMUL);
        add_up(e);
        laps.lap(layers::REST);
    }
}

} // namespace experts
