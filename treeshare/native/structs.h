// The structs that callers fill in. Their mirrors in Python are in structs.py; structs.cpp tells it where every field
// lies, and a library whose structs differ is not used.
//
// Shapes: T packed rows, H KV heads, G query heads per KV head, D key width, V value width, E stored value width: values,
// a 1, and what fills it up to a multiple of 16; N padded tokens of a segment, C tokens of a page. Element is uint16_t,
// bits of a bfloat16, or float.

#pragma once

#include <cstdint>

constexpr int64_t KEY_BLOCK = 256; // keys of a block, which begins at a multiple of it in the prompt

// Tokens of a segment that lie side by side.
struct Piece {
    uint64_t keys, values; // addresses of the first token in [H][D][N] and [H][N][E]
    int64_t padded_tokens; // N
    int64_t num_tokens;
};

// Rows [first_row, last_row) of a step and the keys that they see: pieces side by side, from the start of a block.
struct Slice {
    int64_t first_row, last_row;
    int64_t first_piece, num_pieces;
    int64_t num_keys;        // of all pieces, those that this step stores included
    int64_t first_position;  // of the first key in its prompt
    int64_t first_own_token; // causal: the place in the last piece of the first row's own token; else 0
    int64_t causal;          // 1: a row is a token of the last piece and sees none after it; 0: rows see all keys
};

// Rows of codes of 8 bits times panels of codes, which lie as Int8Linear's do: inputs are a multiple of 64.
struct CodeProducts {
    const int8_t *rows;        // [num_rows][inputs]
    const int8_t *panels;      // [num_panels][inputs / 4][16][4]
    const int32_t *panel_sums; // [num_panels * 16]: of an output's codes
    float *sums;               // [num_rows][stride], of them num_panels * 16: of products, exact below 2 ** 24
    int64_t num_rows, inputs, num_panels, stride;
};

// What multiplies them: a level's `multiply_codes`.
using MultiplyCodes = void (*)(const CodeProducts *given);

// One step, for one layer.
struct TreeStep {
    int64_t num_rows, num_kv_heads, group_size, page_size;
    int64_t key_width, value_width, stored_width; // D, a multiple of 4; V; E
    int64_t num_slices;
    const Slice *slices;             // [num_slices], in the order in which a row meets them
    const Piece *pieces;             // of all slices
    const int64_t *page_indptr;      // [num_rows + 1]
    const int64_t *pages;            // page numbers of each row, oldest first, without those that it sees nothing of
    const int64_t *private_tokens;   // [num_rows]: tokens on a row's pages, this step's included; 0: prefill
    const int64_t *first_seen;       // [num_rows]: position in its prompt of the first key that a row sees; null: 0
    const int64_t *hidden_tokens;    // [num_rows]: tokens of a row's first page that it does not see; null with first_seen
    const float *sinks;              // [H * G]: a score without a value, as a natural logarithm; null: none
    double soft_cap;                 // scaled scores s become soft_cap * tanh(s / soft_cap); 0: they stay
    uint64_t pool_keys, pool_values; // addresses of [pages][H][C][D] and [pages][H][C][E]
    int64_t *nanoseconds;            // [5], added to: time of all threads by attention's Kind; null: not measured
    MultiplyCodes multiply_codes;    // of any level: prompts' keys and values are multiplied in codes; null: as they are
};

// A layer's queries, keys and values: strides count elements from row to row; a row's heads lie side by side.
template <class Element>
struct Projections {
    const Element *query, *key, *value; // [T][H * G][D], [T][H][D], [T][H][V]; no key: it is stored already
    int64_t query_stride, key_stride, value_stride;
};

// A linear layer: weight [num_outputs][num_inputs], in bfloat16 an even number of inputs; bias [num_outputs] or null.
template <class Element>
struct Linear {
    const Element *weight, *bias;
    int64_t num_inputs, num_outputs;
};

// Rows of numbers.
struct Buffer {
    uint64_t address;
    int64_t row_stride, is_float32; // in numbers; else elements
};

// A linear layer, or an embedding's table, in codes of 8 bits: int8.h says what they stand for.
//
// Inputs are padded to a multiple of 64 and outputs to one of 16, with zeros. A group is so many inputs that have one
// scale: a multiple of 64; what reaches beyond the inputs is not there, so that any number from the padded inputs on
// means one scale for all of them. Sixteen outputs are a panel, four inputs a word:
//     codes [panels][words][16][4], scales and sums [groups][outputs]
// A row that is multiplied by them: its codes [inputs] and its scales [groups], and bytes up to a multiple of 64. Rows
// lie in a buffer of float32, whose stride counts four bytes each.
struct Int8Linear {
    int8_t *codes;
    float *scales;
    int32_t *sums;     // of a group's codes
    const float *bias; // [num_outputs], or null
    int64_t num_inputs, num_outputs, group;
    int64_t transform; // inputs that are mixed before they become codes: a power of two that divides num_inputs
};

// What multiplies rows of codes: a level's `apply_int8`.
using ApplyInt8 = void (*)(const Int8Linear *linear, const Buffer *rows, const Buffer *out, int64_t num_rows);

// What a decoder layer computes beside attention, by name. Linear layers; a row's codes; norms; rotary positions;
// functions of one number; functions of two or three.
#define OPERATION_KINDS(KIND)                                                                                          \
    KIND(LINEAR) KIND(LINEAR_INT8) KIND(QUANTIZE)                                                                      \
    KIND(RMS_NORM) KIND(LAYER_NORM)                                                                                    \
    KIND(ROTATE_HALVES) KIND(ROTATE_PAIRS)                                                                             \
    KIND(COPY) KIND(SILU) KIND(SIGMOID) KIND(GELU) KIND(GELU_TANH) KIND(GELU_NEW) KIND(RELU) KIND(SQUARE) KIND(CUBE)   \
    KIND(TANH) KIND(EXPM1) KIND(NEGATE)                                                                                \
    KIND(ADD) KIND(SUBTRACT) KIND(MULTIPLY) KIND(MINIMUM) KIND(MAXIMUM) KIND(GREATER) KIND(SELECT)

enum OperationKind : int64_t {
#define KIND(name) name,
    OPERATION_KINDS(KIND)
#undef KIND
};

// What else an operation is told: round its result to the element; round what it multiplies or adds last; turn the
// other half; add 1 to the weight.
#define OPERATION_FLAGS(FLAG) FLAG(ROUND, 1) FLAG(ROUND_INNER, 2) FLAG(FLIP, 4) FLAG(PLUS_ONE, 8)

enum OperationFlag : int64_t {
#define FLAG(name, bit) name = bit,
    OPERATION_FLAGS(FLAG)
#undef FLAG
};

constexpr int64_t NO_BUFFER = -1; // an operand that is not there
constexpr int64_t ROW_BUFFER = -2; // float32 memory of a thread, for numbers that are used in the same row at once

// Where the numbers of an operand are in a row: groups side by side in the operation, `group_stride` apart in memory.
struct Place {
    int64_t buffer, offset, group_stride; // in numbers
};

// One operation on every row: out = kind(a, b, c). A norm, or a head to be rotated, is a group.
template <class Element>
struct Operation {
    int64_t kind, flags, groups, width;
    Place a, b, c, out;    // rotary positions: b is the cosine, c the sine
    double number;           // epsilon, or b where that is neither an operand nor a weight
    Linear<Element> linear;  // of a norm, and of an operation with a weight for each column, too: weight and bias
    const Int8Linear *int8;  // of LINEAR_INT8, and of QUANTIZE, whose inputs, group and transform are this layer's
};

// Operations, one after the other, between attention and the layer's input or output.
template <class Element>
struct Program {
    const Operation<Element> *operations;
    int64_t num_operations;
    const Buffer *buffers;
    int64_t num_rows;
    int64_t row_numbers;  // numbers of ROW_BUFFER
    int64_t *nanoseconds; // [2], added to: matmuls, the rest; null: not measured
    ApplyInt8 apply_int8; // of any level; null where there is no LINEAR_INT8
};

// A layer's mixture of experts. An expert is a linear layer, operations on each of its rows, and another linear layer. A
// row's output is the sum of what its experts give times their weights, in the order in which they are named.
template <class Element>
struct Experts {
    const Linear<Element> *up, *down; // [num_experts]: all of one shape
    const Program<Element> *gate;     // what lies between the two: buffer 0 is what `up` gives
    int64_t gated;                    // the buffer that holds what `down` takes
    int64_t num_experts, num_rows, top_k;
    int64_t takes_turns;     // 1: outputs of `up` belong to two halves by turns, which `gate` reads side by side
    int64_t rounds_products; // 1: what an expert gives times its weight is rounded to the element
    const Element *x;        // [num_rows][inputs]
    const int64_t *chosen;   // [num_rows][top_k]: experts; a number that is none's adds nothing
    const float *weights;    // [num_rows][top_k]
    Element *out;            // [num_rows][outputs]
    int64_t *indptr;         // memory: [num_experts + 1], where each expert's rows begin
    int64_t *places;         // memory: [num_rows][top_k], which of the experts' rows
    Element *gathered;       // memory: [num_rows * top_k][inputs]
    Element *given;          // memory: [num_rows * top_k][outputs]
};

// Tokens to be drawn from rows of logits.
struct Draws {
    int64_t num_rows, vocab_size, stride, is_bfloat16;
    const void *logits;        // [.][stride] bfloat16 or float32
    const int64_t *rows;       // [num_rows]: which rows of logits
    const float *temperatures; // [num_rows]; 0 takes the likeliest token, the lowest id on a tie
    const int64_t *top_k;      // [num_rows]; 0: all
    const double *top_p;       // [num_rows]; 1: all
    const double *margins;     // [num_rows]: min-p: how far a logit may be from the maximum, <= 0; -infinity: any
    const int64_t *indptr;     // [num_rows + 1]: draws of each row
    const double *uniforms;    // [num_draws]
    const uint32_t *const *masks; // [num_rows]: a bit for each token that may be drawn, in words of 32; null: all may
    const int64_t *bias_indptr;   // [num_rows + 1]: biases of each row, added to logits after the mask
    const int64_t *bias_tokens;
    const float *bias_values;
    int64_t *tokens;  // [num_draws]
    double *logprobs; // [num_draws]: before mask, bias and temperature
    int64_t *broken;  // [num_rows]: 1 where a row holds NaN, infinity or nothing finite, 2 where mask and bias leave such
};
