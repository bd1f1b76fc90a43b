// The structs that callers fill in. Their mirrors in Python are in structs.py; structs.cpp tells it where every field
// lies, and a library whose structs differ is not used.
//
// Shapes: T packed rows, H KV heads, G query heads per KV head, D head_dim, E stored value width, N padded tokens of a
// segment, C tokens of a page. Element is uint16_t, bits of a bfloat16, or float.

#pragma once

#include <cstdint>

constexpr int64_t KEY_BLOCK = 256; // keys of a block, which begins at a multiple of it in the prompt

// Tokens of a segment or of a page that lie side by side.
struct Piece {
    uint64_t keys, values; // addresses of the first token in [H][D][N] and [H][N][E]
    int64_t padded_tokens; // N; C of a page
    int64_t num_tokens;
};

// Rows [first_row, last_row) of a step and the keys that they see: pieces side by side, from the start of a block.
struct Slice {
    int64_t first_row, last_row;
    int64_t first_piece, num_pieces;
    int64_t num_keys;        // of all pieces, those that this step stores included
    int64_t first_own_token; // causal: the place in the last piece of the first row's own token; else 0
    int64_t causal;          // 1: a row is a token of the last piece and sees none after it; 0: rows see all keys
};

// One step, for one layer.
struct TreeStep {
    int64_t num_rows, num_kv_heads, group_size, head_dim, value_width, page_size;
    int64_t num_slices;
    const Slice *slices;             // [num_slices], in the order in which a row meets them
    const Piece *pieces;             // of all slices
    const int64_t *page_indptr;      // [num_rows + 1]
    const int64_t *pages;            // page numbers of each row, oldest first
    const int64_t *private_tokens;   // [num_rows]: tokens on a row's pages, this step's included; 0: prefill
    uint64_t pool_keys, pool_values; // addresses of [pages][H][D][C] and [pages][H][C][E]
    int64_t *nanoseconds;            // [5], added to: time of all threads by attention's Kind; null: not measured
};

// A layer's queries, keys and values: strides count elements from row to row; a row's heads lie side by side.
template <class Element>
struct Projections {
    const Element *query, *key, *value; // [T][H * G][D], [T][H][D], [T][H][D]
    int64_t query_stride, key_stride, value_stride;
};

// A linear layer: weight [num_outputs][num_inputs], in bfloat16 an even number of inputs; bias [num_outputs] or null.
template <class Element>
struct Linear {
    const Element *weight, *bias;
    int64_t num_inputs, num_outputs;
};

// An RMS norm.
template <class Element>
struct Norm {
    const Element *weight;
    double epsilon;
};

// A decoder layer without its attention.
template <class Element>
struct Layer {
    Linear<Element> qkv, out, gate_up, down; // q, k, v and gate, up side by side
    Norm<Element> first, second;
    int64_t num_rotated_heads, head_dim; // q and k
    int64_t *nanoseconds;                // [2], added to: matmuls, the rest; null: not measured
};

// A layer's inputs and results, [num_rows][.] each; `x` is its input and its output.
template <class Element>
struct Activations {
    int64_t num_rows;
    const Element *cosine, *sine, *attended;
    Element *x, *normal, *qkv, *gate_up, *gated, *delta;
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
    int64_t *tokens;           // [num_draws]
    double *logprobs;          // [num_draws]: before temperature
    int64_t *broken;           // [num_rows]: 1 where a row holds NaN, infinity or nothing finite
};
