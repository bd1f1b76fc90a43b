"""Triton kernels of tree attention: store, node x slice, private pages, the merge of any number of states.

What they compute is a fixed sum for each row, whatever else is in the step and however the work is cut:

- A node's keys are taken in chunks of ``CHUNK``, counted from the node's first token. Inside a chunk runs an
  online softmax over blocks of keys; chunks are merged in order, left to right.
- A program either takes a whole node and merges its chunks itself, or takes one chunk and leaves the merging
  to ``merge_states``: both call ``merge`` on the same numbers in the same order.
- ``merge_states`` merges the chunks of each node, then the nodes of the row, root first.
- The shape of a tile depends on dtype, head_dim and group size only, so one row or a thousand go through the
  same instructions. A block of keys that a row does not see changes no bit of it.

A state is unnormalised: numerator, maximum of the scores before scaling, sum; all float32. The merge turns it
into output and natural log-sum-exp. ``score_factor``, above zero, is the scale times the log2 of e.

Shapes: ``T`` packed rows, ``H`` KV heads, ``G`` query heads of each, ``D`` head_dim, ``E`` width of a stored
value row, ``N`` padded tokens of a segment, ``C`` tokens of a page, ``S`` slots for partial states.
"""

import triton
import triton.language as tl

from treeshare.attention.triton_blocks import (
    address,
    attend_block,
    load_parts,
    load_values,
    merge,
    nothing,
    products,
    rounded,
    store_state,
)

LN_2 = tl.constexpr(0.6931471805599453)

STORE_FIELDS, SLICE_FIELDS, PRIVATE_FIELDS, SOURCE_FIELDS = (tl.constexpr(n) for n in (4, 10, 4, 3))
"""int32 fields of a work item of each kernel; its docstring names them."""


@triton.jit
def store_tokens(
    key,
    value,
    bases,
    targets,
    key_row_stride,
    key_head_stride,
    value_row_stride,
    value_head_stride,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Store the keys and values of one packed row; grid ``(T,)``.

    ``targets`` ``[T, 4]``: block, place in it, padded tokens of the block (zero: store nothing), token.
    """
    row = tl.program_id(0).to(tl.int64)
    target = targets + row * STORE_FIELDS
    block, index = tl.load(target), tl.load(target + 1).to(tl.int64)
    padded, token = tl.load(target + 2), tl.load(target + 3)
    keys = address(bases, block, 0, key.dtype)
    values = address(bases, block, 1, value.dtype)
    h, d = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D)
    real = h < tl.where(padded > 0, NUM_HEADS, 0)
    mask = real[:, None] & (d < HEAD_DIM)[None, :]
    source = key + row * key_row_stride + h[:, None] * key_head_stride + d[None, :]
    place = ((index * NUM_HEADS + h)[:, None] * HEAD_DIM + d[None, :]) * padded + token
    tl.store(keys + place, tl.load(source, mask=mask), mask=mask)

    source = value + row * value_row_stride + h[:, None] * value_head_stride + d[None, :]
    stored_row = ((index * NUM_HEADS + h) * padded + token) * VALUE_WIDTH
    tl.store(values + stored_row[:, None] + d[None, :], tl.load(source, mask=mask), mask=mask)
    tail = HEAD_DIM + tl.arange(0, 16)
    one = tl.where((tail == HEAD_DIM)[None, :] & real[:, None], 1.0, 0.0)
    mask = real[:, None] & (tail < VALUE_WIDTH)[None, :]
    tl.store(values + stored_row[:, None] + tail[None, :], one.to(value.dtype.element_ty), mask=mask)


@triton.jit
def attend_slices(
    query,
    bases,
    items,
    numerators,
    highs,
    totals,
    query_row_stride,
    query_head_stride,
    score_factor,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A tile of the query rows below a node over keys of the node; grid ``(items, H)``.

    The ``G`` query heads of a KV head are rows of one tile, so that a key is read once for all of them.

    ``items`` ``[n, 10]``: first and last row of the slice, first tile row, block, place in it, padded tokens,
    first and last key, first slot, position of the first row in the segment (``CAUSAL``: a row sees the
    segment up to itself).
    """
    item = items + tl.program_id(0).to(tl.int64) * SLICE_FIELDS
    head = tl.program_id(1)
    first_row, last_row, tile = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    block, index = tl.load(item + 3), tl.load(item + 4).to(tl.int64)
    padded = tl.multiple_of(tl.load(item + 5), 64)
    first_key, last_key = tl.multiple_of(tl.load(item + 6), 64), tl.load(item + 7)
    first_slot, position = tl.load(item + 8), tl.load(item + 9)

    stacked = tile + tl.arange(0, BLOCK_M)
    row = first_row + stacked // GROUP
    query_head = head * GROUP + stacked % GROUP
    real = row < last_row
    d = tl.arange(0, BLOCK_D)
    tile_query = load_parts(
        query, row, query_head, query_row_stride, query_head_stride, d, real, HEAD_DIM, INTERPRETED
    )
    keys = address(bases, block, 0, query.dtype) + (index * NUM_HEADS + head) * HEAD_DIM * padded
    values = address(bases, block, 1, query.dtype) + (index * NUM_HEADS + head) * padded * VALUE_WIDTH

    node_numerator, node_high, node_total = nothing(BLOCK_M, BLOCK_D)
    for chunk in tl.range(0, tl.cdiv(last_key - first_key, CHUNK)):
        chunk_start = first_key + chunk * CHUNK
        numerator, high, total = nothing(BLOCK_M, BLOCK_D)
        for step in tl.range(0, tl.cdiv(tl.minimum(last_key - chunk_start, CHUNK), BLOCK_N)):
            n = chunk_start + step * BLOCK_N + tl.arange(0, BLOCK_N)
            scores = products(tile_query, keys, n, padded, d, HEAD_DIM, INTERPRETED)
            tile_values = load_values(values, n, d, HEAD_DIM, VALUE_WIDTH)
            seen = n[None, :] <= (position + row - first_row)[:, None] if CAUSAL else (n < last_key)[None, :]
            numerator, high, total = attend_block(
                numerator, high, total, scores, tile_values, seen, score_factor, INTERPRETED
            )
        node_numerator, node_high, node_total = merge(
            node_numerator, node_high, node_total, numerator, high, total, score_factor
        )
    store_state(
        numerators,
        highs,
        totals,
        node_numerator,
        node_high,
        node_total,
        first_slot + row - first_row,
        query_head,
        d,
        real,
        NUM_HEADS * GROUP,
        HEAD_DIM,
    )


@triton.jit
def attend_pages(
    query,
    bases,
    items,
    pages,
    numerators,
    highs,
    totals,
    query_row_stride,
    query_head_stride,
    score_factor,
    NUM_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A decoding row over its private pages, which are block 0; grid ``(items, H)``.

    ``items`` ``[n, 4]``: row, its first entry of ``pages``, tokens, slot. ``CHUNK`` is a multiple of
    ``PAGE_SIZE``, and that of ``BLOCK_N``.
    """
    item = items + tl.program_id(0).to(tl.int64) * PRIVATE_FIELDS
    head = tl.program_id(1)
    row, first_page = tl.load(item), tl.load(item + 1)
    num_tokens, slot = tl.load(item + 2), tl.load(item + 3)

    g, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query_head = head * GROUP + g
    real = g < GROUP
    row += tl.zeros([BLOCK_M], tl.int32)
    tile_query = load_parts(
        query, row, query_head, query_row_stride, query_head_stride, d, real, HEAD_DIM, INTERPRETED
    )
    pool_keys, pool_values = address(bases, 0, 0, query.dtype), address(bases, 0, 1, query.dtype)
    node_numerator, node_high, node_total = nothing(BLOCK_M, BLOCK_D)
    for chunk in tl.range(0, num_tokens, CHUNK):
        numerator, high, total = nothing(BLOCK_M, BLOCK_D)
        for start in tl.range(chunk, tl.minimum(chunk + CHUNK, num_tokens), BLOCK_N):
            page = tl.load(pages + first_page + start // PAGE_SIZE).to(tl.int64) * NUM_HEADS + head
            n = start % PAGE_SIZE + tl.arange(0, BLOCK_N)
            keys = pool_keys + page * (HEAD_DIM * PAGE_SIZE)
            values = pool_values + page * (PAGE_SIZE * VALUE_WIDTH)
            scores = products(tile_query, keys, n, PAGE_SIZE, d, HEAD_DIM, INTERPRETED)
            tile_values = load_values(values, n, d, HEAD_DIM, VALUE_WIDTH)
            seen = (start + tl.arange(0, BLOCK_N) < num_tokens)[None, :]
            numerator, high, total = attend_block(
                numerator, high, total, scores, tile_values, seen, score_factor, INTERPRETED
            )
        node_numerator, node_high, node_total = merge(
            node_numerator, node_high, node_total, numerator, high, total, score_factor
        )
    store_state(
        numerators,
        highs,
        totals,
        node_numerator,
        node_high,
        node_total,
        slot + tl.zeros([BLOCK_M], tl.int32),
        query_head,
        d,
        real,
        NUM_HEADS * GROUP,
        HEAD_DIM,
    )


@triton.jit
def merge_states(
    numerators,
    highs,
    totals,
    source_indptr,
    sources,
    out,
    lse,
    score_factor,
    NUM_Q_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Merge all states of a row and normalise; grid ``(T, H)``. A row without sources is ``(0, -inf)``.

    ``sources`` ``[n, 3]``: first slot, slots from one chunk to the next, chunks; a row's are entries
    ``source_indptr[row]`` to ``source_indptr[row + 1]``, root first.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    query_head = head * GROUP + g
    real = g < GROUP
    mask = real[:, None] & (d < HEAD_DIM)[None, :]
    row_numerator, row_high, row_total = nothing(BLOCK_M, BLOCK_D)
    for source in tl.range(tl.load(source_indptr + row), tl.load(source_indptr + row + 1)):
        entry = sources + source * SOURCE_FIELDS
        first_slot, slot_step, num_chunks = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
        node_numerator, node_high, node_total = nothing(BLOCK_M, BLOCK_D)
        for chunk in tl.range(0, num_chunks):
            place = (first_slot + chunk * slot_step).to(tl.int64) * NUM_Q_HEADS + query_head
            numerator = tl.load(numerators + place[:, None] * HEAD_DIM + d[None, :], mask=mask, other=0.0)
            high = tl.load(highs + place, mask=real, other=float("-inf"))
            total = tl.load(totals + place, mask=real, other=0.0)
            node_numerator, node_high, node_total = merge(
                node_numerator, node_high, node_total, numerator, high, total, score_factor
            )
        row_numerator, row_high, row_total = merge(
            row_numerator, row_high, row_total, node_numerator, node_high, node_total, score_factor
        )
    divisor = tl.where(row_total == 0.0, 1.0, row_total)
    place = row * NUM_Q_HEADS + query_head
    result = rounded(row_numerator / divisor[:, None], out.dtype.element_ty, INTERPRETED)
    tl.store(out + place[:, None] * HEAD_DIM + d[None, :], result, mask=mask)
    natural = tl.where(row_total == 0.0, float("-inf"), (row_high * score_factor + tl.log2(divisor)) * LN_2)
    tl.store(lse + place, natural, mask=real)
