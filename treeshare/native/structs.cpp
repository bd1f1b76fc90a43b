// What a caller checks before it uses the library: where the structs' fields lie, and the kernels' arguments.

#include <cstddef>
#include <cstdint>
#include <cstring>

#define EXPORT(name) treeshare_##name##_any // declared only: the arguments are the same for every level and element
#define LEVEL_EXPORT(name) EXPORT(name)
using Element = uint16_t;
#include "exports.h"

namespace {

// Fields lie in the same places with every element: they are addresses and numbers.
using Projections = ::Projections<Element>;
using Linear = ::Linear<Element>;
using Operation = ::Operation<Element>;
using Program = ::Program<Element>;
using Experts = ::Experts<Element>;

struct Field {
    const char *name;
    size_t struct_size, offset, size;
};

#define FIELD(Struct, field) {#Struct "." #field, sizeof(Struct), offsetof(Struct, field), sizeof(Struct::field)}

// Every field of every struct, in order.
constexpr Field FIELDS[] = {
    FIELD(Piece, keys),
    FIELD(Piece, values),
    FIELD(Piece, padded_tokens),
    FIELD(Piece, num_tokens),

    FIELD(Slice, first_row),
    FIELD(Slice, last_row),
    FIELD(Slice, first_piece),
    FIELD(Slice, num_pieces),
    FIELD(Slice, num_keys),
    FIELD(Slice, first_position),
    FIELD(Slice, first_own_token),
    FIELD(Slice, causal),

    FIELD(CodeProducts, rows),
    FIELD(CodeProducts, panels),
    FIELD(CodeProducts, panel_sums),
    FIELD(CodeProducts, sums),
    FIELD(CodeProducts, num_rows),
    FIELD(CodeProducts, inputs),
    FIELD(CodeProducts, num_panels),
    FIELD(CodeProducts, stride),

    FIELD(TreeStep, num_rows),
    FIELD(TreeStep, num_kv_heads),
    FIELD(TreeStep, group_size),
    FIELD(TreeStep, page_size),
    FIELD(TreeStep, key_width),
    FIELD(TreeStep, value_width),
    FIELD(TreeStep, stored_width),
    FIELD(TreeStep, num_slices),
    FIELD(TreeStep, slices),
    FIELD(TreeStep, pieces),
    FIELD(TreeStep, page_indptr),
    FIELD(TreeStep, pages),
    FIELD(TreeStep, private_tokens),
    FIELD(TreeStep, first_seen),
    FIELD(TreeStep, hidden_tokens),
    FIELD(TreeStep, sinks),
    FIELD(TreeStep, soft_cap),
    FIELD(TreeStep, pool_keys),
    FIELD(TreeStep, pool_values),
    FIELD(TreeStep, nanoseconds),
    FIELD(TreeStep, multiply_codes),

    FIELD(Projections, query),
    FIELD(Projections, key),
    FIELD(Projections, value),
    FIELD(Projections, query_stride),
    FIELD(Projections, key_stride),
    FIELD(Projections, value_stride),

    FIELD(Linear, weight),
    FIELD(Linear, bias),
    FIELD(Linear, num_inputs),
    FIELD(Linear, num_outputs),

    FIELD(Buffer, address),
    FIELD(Buffer, row_stride),
    FIELD(Buffer, is_float32),

    FIELD(Int8Linear, codes),
    FIELD(Int8Linear, scales),
    FIELD(Int8Linear, sums),
    FIELD(Int8Linear, bias),
    FIELD(Int8Linear, num_inputs),
    FIELD(Int8Linear, num_outputs),
    FIELD(Int8Linear, group),
    FIELD(Int8Linear, transform),

    FIELD(Place, buffer),
    FIELD(Place, offset),
    FIELD(Place, group_stride),

    FIELD(Operation, kind),
    FIELD(Operation, flags),
    FIELD(Operation, groups),
    FIELD(Operation, width),
    FIELD(Operation, a),
    FIELD(Operation, b),
    FIELD(Operation, c),
    FIELD(Operation, out),
    FIELD(Operation, number),
    FIELD(Operation, linear),
    FIELD(Operation, int8),

    FIELD(Program, operations),
    FIELD(Program, num_operations),
    FIELD(Program, buffers),
    FIELD(Program, num_rows),
    FIELD(Program, row_numbers),
    FIELD(Program, nanoseconds),
    FIELD(Program, apply_int8),

    FIELD(Experts, up),
    FIELD(Experts, down),
    FIELD(Experts, gate),
    FIELD(Experts, gated),
    FIELD(Experts, num_experts),
    FIELD(Experts, num_rows),
    FIELD(Experts, top_k),
    FIELD(Experts, takes_turns),
    FIELD(Experts, rounds_products),
    FIELD(Experts, x),
    FIELD(Experts, chosen),
    FIELD(Experts, weights),
    FIELD(Experts, out),
    FIELD(Experts, indptr),
    FIELD(Experts, places),
    FIELD(Experts, gathered),
    FIELD(Experts, given),

    FIELD(Draws, num_rows),
    FIELD(Draws, vocab_size),
    FIELD(Draws, stride),
    FIELD(Draws, is_bfloat16),
    FIELD(Draws, logits),
    FIELD(Draws, rows),
    FIELD(Draws, temperatures),
    FIELD(Draws, top_k),
    FIELD(Draws, top_p),
    FIELD(Draws, margins),
    FIELD(Draws, indptr),
    FIELD(Draws, uniforms),
    FIELD(Draws, masks),
    FIELD(Draws, bias_indptr),
    FIELD(Draws, bias_tokens),
    FIELD(Draws, bias_values),
    FIELD(Draws, tokens),
    FIELD(Draws, logprobs),
    FIELD(Draws, broken),
};

// Fields follow one another from a struct's beginning to its end: none is left out here, and there is no padding.
constexpr bool is_complete() {
    size_t end = 0, struct_size = 0;
    for (const Field &field : FIELDS) {
        if (end == struct_size) {
            end = 0;
            struct_size = field.struct_size;
        }
        if (field.offset != end || field.struct_size != struct_size) return false;
        end += field.size;
    }
    return end == struct_size;
}
static_assert(is_complete(), "FIELDS must list all fields of each struct in order, and no struct may have padding");

// A function's arguments, a letter each: p a pointer, i int64_t, f float.
template <class T>
struct Letter;
template <class T>
struct Letter<T *> {
    static constexpr char letter = 'p';
};
template <>
struct Letter<int64_t> {
    static constexpr char letter = 'i';
};
template <>
struct Letter<float> {
    static constexpr char letter = 'f';
};

template <class Function>
struct Arguments;
template <class... Types>
struct Arguments<void(Types...)> {
    static constexpr char letters[] = {Letter<Types>::letter..., 0};
};
template <class... Types>
constexpr char Arguments<void(Types...)>::letters[];

struct Kernel {
    const char *name, *arguments;
};

#define KERNEL(name) {#name, Arguments<decltype(EXPORT(name))>::letters}
#define FUNCTION(name) {#name, Arguments<decltype(treeshare_##name)>::letters} // no level's

constexpr Kernel KERNELS[] = {
    KERNEL(attend),     KERNEL(linear),      KERNEL(run),   KERNEL(draw),  KERNEL(exp),
    KERNEL(sum_blocks), KERNEL(log_softmax), FUNCTION(log), FUNCTION(cos), FUNCTION(sin), FUNCTION(power),
    KERNEL(quantize_rows), KERNEL(pack_int8), KERNEL(lookup_int8), KERNEL(linear_int8), KERNEL(apply_int8),
    KERNEL(multiply_codes),
    KERNEL(experts),
};

struct Number {
    const char *name;
    int64_t number;
};

// Of operations: their kinds and flags, and what stands for no buffer and a row's.
constexpr Number NUMBERS[] = {
#define KIND(name) {#name, name},
    OPERATION_KINDS(KIND)
#undef KIND
#define FLAG(name, bit) {#name, name},
    OPERATION_FLAGS(FLAG)
#undef FLAG
    {"NO_BUFFER", NO_BUFFER},
    {"ROW_BUFFER", ROW_BUFFER},
};

const Field *find_field(const char *name) {
    for (const Field &field : FIELDS)
        if (!std::strcmp(field.name, name)) return &field;
    return nullptr;
}

} // namespace

extern "C" {

// Bytes of a struct, such as "Slice"; -1 if there is none.
int64_t treeshare_struct_size(const char *name) {
    const size_t length = std::strlen(name);
    for (const Field &field : FIELDS)
        if (!std::strncmp(field.name, name, length) && field.name[length] == '.') return field.struct_size;
    return -1;
}

// Where a field such as "Slice.causal" begins, and its bytes; -1 if there is none.
int64_t treeshare_field_offset(const char *name) {
    const Field *field = find_field(name);
    return field ? int64_t(field->offset) : -1;
}
int64_t treeshare_field_size(const char *name) {
    const Field *field = find_field(name);
    return field ? int64_t(field->size) : -1;
}

int64_t treeshare_key_block() { return KEY_BLOCK; }

// The number of an operation's kind, such as "RMS_NORM", or another of NUMBERS; INT64_MIN if there is none.
int64_t treeshare_number(const char *name) {
    for (const Number &number : NUMBERS)
        if (!std::strcmp(number.name, name)) return number.number;
    return INT64_MIN;
}

// The arguments of a kernel, such as "attend", a letter each; null if there is none.
const char *treeshare_arguments(const char *name) {
    for (const Kernel &kernel : KERNELS)
        if (!std::strcmp(kernel.name, name)) return kernel.arguments;
    return nullptr;
}
}
