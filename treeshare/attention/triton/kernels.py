"""Triton kernels of tree attention: store, node x slice, private pages, the merge of any number of states.

What they compute is a fixed sum for each row, whatever else is in the step and however the work is cut:

- A node's keys are taken in chunks of ``CHUNK``, counted from the node's first token. Inside a chunk runs an
  online softmax over blocks of keys; chunks are merged in order, left to right.
- A program either takes a whole node and merges its chunks itself, or takes one chunk and leaves the merging
  to ``merge_states``: both call ``merge`` on the same numbers in the same order.
- ``merge_states`` merges the chunks of each node, then the nodes of the row, root first.
- The shape of a tile depends on dtype, widths and group size only, so one row or a thousand go through the
  same instructions. A block of keys that a row does not see changes no bit of it, nor does a chunk.

A state is unnormalised: numerator, maximum of the scores before scaling, sum; all float32. The merge turns it
into output and natural log-sum-exp. ``score_factor``, above zero, is the scale times the log2 of e; with a
soft cap, the cap times it: there a score is the hyperbolic tangent of a product times ``cap_factor``.

Shapes: ``T`` packed rows, ``H`` KV heads, ``G`` query heads of each, ``D`` width of a key, ``V`` of a value,
``E`` of a stored value row, ``N`` padded tokens of a segment, ``C`` tokens of a page, ``S`` slots for partial
states.
"""

import triton
import triton.language as tl

from treeshare.attention.triton.blocks import (
    address,
    attend_keys,
    load_parts,
    merge,
    nothing,
    rounded,
    store_state,
)
from treeshare.attention.triton.columns import PageColumn, SliceColumn, SourceColumn, TargetColumn
from treeshare.config import SEGMENT_ALIGNMENT

LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)

# The columns as constants of a kernel: Triton reads no enumeration.
TARGET_COLUMNS = tl.constexpr(len(TargetColumn))
TARGET_BLOCK = tl.constexpr(int(TargetColumn.BLOCK))
TARGET_INDEX = tl.constexpr(int(TargetColumn.INDEX))
TARGET_PADDED_TOKENS = tl.constexpr(int(TargetColumn.PADDED_TOKENS))
TARGET_TOKEN = tl.constexpr(int(TargetColumn.TOKEN))
SLICE_COLUMNS = tl.constexpr(len(SliceColumn))
SLICE_FIRST_ROW = tl.constexpr(int(SliceColumn.FIRST_ROW))
SLICE_LAST_ROW = tl.constexpr(int(SliceColumn.LAST_ROW))
SLICE_FIRST_TILE_ROW = tl.constexpr(int(SliceColumn.FIRST_TILE_ROW))
SLICE_BLOCK = tl.constexpr(int(SliceColumn.BLOCK))
SLICE_INDEX = tl.constexpr(int(SliceColumn.INDEX))
SLICE_PADDED_TOKENS = tl.constexpr(int(SliceColumn.PADDED_TOKENS))
SLICE_FIRST_KEY = tl.constexpr(int(SliceColumn.FIRST_KEY))
SLICE_LAST_KEY = tl.constexpr(int(SliceColumn.LAST_KEY))
SLICE_FIRST_SLOT = tl.constexpr(int(SliceColumn.FIRST_SLOT))
SLICE_POSITION = tl.constexpr(int(SliceColumn.POSITION))
SLICE_START = tl.constexpr(int(SliceColumn.START))
PAGE_COLUMNS = tl.constexpr(len(PageColumn))
PAGE_ROW = tl.constexpr(int(PageColumn.ROW))
PAGE_FIRST_PAGE = tl.constexpr(int(PageColumn.FIRST_PAGE))
PAGE_NUM_TOKENS = tl.constexpr(int(PageColumn.NUM_TOKENS))
PAGE_SLOT = tl.constexpr(int(PageColumn.SLOT))
PAGE_FIRST_TOKEN = tl.constexpr(int(PageColumn.FIRST_TOKEN))
SOURCE_COLUMNS = tl.constexpr(len(SourceColumn))
SOURCE_FIRST_SLOT = tl.constexpr(int(SourceColumn.FIRST_SLOT))
SOURCE_SLOT_STEP = tl.constexpr(int(SourceColumn.SLOT_STEP))
SOURCE_NUM_CHUNKS = tl.constexpr(int(SourceColumn.NUM_CHUNKS))
ALIGNMENT = tl.constexpr(SEGMENT_ALIGNMENT)


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
    NUM_KV_HEADS: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    STORED_WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Store the keys and values of one packed row; grid ``(T,)``.

    ``targets`` ``[T, TargetColumn]``.
    """
    row = tl.program_id(0).to(tl.int64)
    target = targets + row * TARGET_COLUMNS
    block, index = tl.load(target + TARGET_BLOCK), tl.load(target + TARGET_INDEX).to(tl.int64)
    padded, token = tl.load(target + TARGET_PADDED_TOKENS), tl.load(target + TARGET_TOKEN)
    keys = address(bases, block, 0, key.dtype)
    values = address(bases, block, 1, value.dtype)
    h, d, v = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    real = h < tl.where(padded > 0, NUM_KV_HEADS, 0)
    mask = real[:, None] & (d < KEY_WIDTH)[None, :]
    source = key + row * key_row_stride + h[:, None] * key_head_stride + d[None, :]
    is_page = block == 0
    token_stride, dim_stride = tl.where(is_page, KEY_WIDTH, 1), tl.where(is_page, 1, padded)
    place = (index * NUM_KV_HEADS + h)[:, None] * KEY_WIDTH * padded + d[None, :] * dim_stride
    place += token * token_stride
    tl.store(keys + place, tl.load(source, mask=mask), mask=mask)

    mask = real[:, None] & (v < VALUE_WIDTH)[None, :]
    source = value + row * value_row_stride + h[:, None] * value_head_stride + v[None, :]
    stored_row = ((index * NUM_KV_HEADS + h) * padded + token) * STORED_WIDTH
    tl.store(values + stored_row[:, None] + v[None, :], tl.load(source, mask=mask), mask=mask)
    tail = VALUE_WIDTH + tl.arange(0, 16)
    ones = tl.where((tail == VALUE_WIDTH)[None, :] & real[:, None], 1.0, 0.0)
    mask = real[:, None] & (tail < STORED_WIDTH)[None, :]
    tl.store(values + stored_row[:, None] + tail[None, :], ones.to(value.dtype.element_ty), mask=mask)


@triton.jit
def attend_slices(
    query,
    bases,
    items,
    first_seen,
    numerators,
    highs,
    totals,
    query_row_stride,
    query_head_stride,
    score_factor,
    cap_factor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    STORED_WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A tile of the query rows below a node over keys of the node; grid ``(items, H)``.

    The ``G`` query heads of a KV head are rows of one tile, so that a key is read once for all of them.

    ``items`` ``[n, SliceColumn]``; ``CAUSAL``: a row sees the segment up to itself. ``WINDOWED``: keys before
    the position ``first_seen`` ``[T]`` of a row are hidden from it.
    """
    item = items + tl.program_id(0).to(tl.int64) * SLICE_COLUMNS
    head = tl.program_id(1)
    first_row, last_row = tl.load(item + SLICE_FIRST_ROW), tl.load(item + SLICE_LAST_ROW)
    tile = tl.load(item + SLICE_FIRST_TILE_ROW)
    block, index = tl.load(item + SLICE_BLOCK), tl.load(item + SLICE_INDEX).to(tl.int64)
    padded = tl.multiple_of(tl.load(item + SLICE_PADDED_TOKENS), ALIGNMENT)
    first_key = tl.multiple_of(tl.load(item + SLICE_FIRST_KEY), ALIGNMENT)
    last_key = tl.load(item + SLICE_LAST_KEY)
    first_slot, position = tl.load(item + SLICE_FIRST_SLOT), tl.load(item + SLICE_POSITION)

    stacked = tile + tl.arange(0, BLOCK_M)
    row = first_row + stacked // GROUP
    query_head = head * GROUP + stacked % GROUP
    real = row < last_row
    d, v = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    tile_query = load_parts(
        query, row, query_head, query_row_stride, query_head_stride, d, real, KEY_WIDTH, INTERPRETED
    )
    keys = address(bases, block, 0, query.dtype) + (index * NUM_KV_HEADS + head) * KEY_WIDTH * padded
    values = address(bases, block, 1, query.dtype) + (index * NUM_KV_HEADS + head) * padded * STORED_WIDTH
    if WINDOWED:
        oldest = tl.load(first_seen + row, mask=real, other=0) - tl.load(item + SLICE_START)

    node_numerator, node_high, node_total = nothing(BLOCK_M, BLOCK_V)
    for chunk in tl.range(first_key // CHUNK, tl.cdiv(last_key, CHUNK)):
        begin = tl.multiple_of(tl.maximum(chunk * CHUNK, first_key), ALIGNMENT)
        end = tl.minimum((chunk + 1) * CHUNK, last_key)
        numerator, high, total = nothing(BLOCK_M, BLOCK_V)
        for step in tl.range(0, tl.cdiv(end - begin, BLOCK_N)):
            n = begin + step * BLOCK_N + tl.arange(0, BLOCK_N)
            seen = n[None, :] <= (position + row - first_row)[:, None] if CAUSAL else (n < last_key)[None, :]
            if WINDOWED:
                seen = seen & (n[None, :] >= oldest[:, None])
            numerator, high, total = attend_keys(
                numerator, high, total, tile_query, keys, values, n, 1, padded, d, v, seen, score_factor,
                cap_factor, KEY_WIDTH, VALUE_WIDTH, STORED_WIDTH, CAPPED, INTERPRETED,
            )  # fmt: skip
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
        v,
        real,
        NUM_KV_HEADS * GROUP,
        VALUE_WIDTH,
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
    cap_factor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    STORED_WIDTH: tl.constexpr,
    WINDOWED: tl.constexpr,
    CAPPED: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """A decoding row over its private pages, which are block 0; grid ``(items, H)``.

    ``items`` ``[n, PageColumn]``; ``CHUNK`` is a multiple of ``PAGE_SIZE``, and that of ``BLOCK_N``.
    ``WINDOWED``: tokens before an item's first are not read.
    """
    item = items + tl.program_id(0).to(tl.int64) * PAGE_COLUMNS
    head = tl.program_id(1)
    row, first_page = tl.load(item + PAGE_ROW), tl.load(item + PAGE_FIRST_PAGE)
    num_tokens, slot = tl.load(item + PAGE_NUM_TOKENS), tl.load(item + PAGE_SLOT)

    g, d, v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    query_head = head * GROUP + g
    real = g < GROUP
    row += tl.zeros([BLOCK_M], tl.int32)
    tile_query = load_parts(
        query, row, query_head, query_row_stride, query_head_stride, d, real, KEY_WIDTH, INTERPRETED
    )
    pool_keys, pool_values = address(bases, 0, 0, query.dtype), address(bases, 0, 1, query.dtype)
    if WINDOWED:
        first_token = tl.load(item + PAGE_FIRST_TOKEN)
    node_numerator, node_high, node_total = nothing(BLOCK_M, BLOCK_V)
    for chunk in tl.range(0, num_tokens, CHUNK):
        begin = chunk
        if WINDOWED:
            begin = tl.maximum(begin, first_token // BLOCK_N * BLOCK_N)
        numerator, high, total = nothing(BLOCK_M, BLOCK_V)
        for start in tl.range(begin, tl.minimum(chunk + CHUNK, num_tokens), BLOCK_N):
            page = tl.load(pages + first_page + start // PAGE_SIZE).to(tl.int64) * NUM_KV_HEADS + head
            n = start % PAGE_SIZE + tl.arange(0, BLOCK_N)
            keys = pool_keys + page * (KEY_WIDTH * PAGE_SIZE)
            values = pool_values + page * (PAGE_SIZE * STORED_WIDTH)
            seen = (start + tl.arange(0, BLOCK_N) < num_tokens)[None, :]
            if WINDOWED:
                seen = seen & (start + tl.arange(0, BLOCK_N) >= first_token)[None, :]
            numerator, high, total = attend_keys(
                numerator, high, total, tile_query, keys, values, n, KEY_WIDTH, 1, d, v, seen, score_factor,
                cap_factor, KEY_WIDTH, VALUE_WIDTH, STORED_WIDTH, CAPPED, INTERPRETED,
            )  # fmt: skip
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
        v,
        real,
        NUM_KV_HEADS * GROUP,
        VALUE_WIDTH,
    )


@triton.jit
def merge_states(
    numerators,
    highs,
    totals,
    source_indptr,
    sources,
    sinks,
    out,
    lse,
    score_factor,
    NUM_Q_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_V: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """Merge all states of a row and normalise; grid ``(T, H)``. A row without sources is ``(0, -inf)``.

    ``sources`` ``[n, SourceColumn]``; a row's are entries ``source_indptr[row]`` to
    ``source_indptr[row + 1]``, root first. ``HAS_SINKS``: last, the exponential of the natural-log score
    ``sinks`` ``[H * G]`` is added to a row's sum.
    """
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    g, v = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_V)
    query_head = head * GROUP + g
    real = g < GROUP
    mask = real[:, None] & (v < VALUE_WIDTH)[None, :]
    row_numerator, row_high, row_total = nothing(BLOCK_M, BLOCK_V)
    for source in tl.range(tl.load(source_indptr + row), tl.load(source_indptr + row + 1)):
        entry = sources + source * SOURCE_COLUMNS
        first_slot, slot_step = tl.load(entry + SOURCE_FIRST_SLOT), tl.load(entry + SOURCE_SLOT_STEP)
        num_chunks = tl.load(entry + SOURCE_NUM_CHUNKS)
        node_numerator, node_high, node_total = nothing(BLOCK_M, BLOCK_V)
        for chunk in tl.range(0, num_chunks):
            place = (first_slot + chunk * slot_step).to(tl.int64) * NUM_Q_HEADS + query_head
            numerator = tl.load(numerators + place[:, None] * VALUE_WIDTH + v[None, :], mask=mask, other=0.0)
            high = tl.load(highs + place, mask=real, other=float("-inf"))
            total = tl.load(totals + place, mask=real, other=0.0)
            node_numerator, node_high, node_total = merge(
                node_numerator, node_high, node_total, numerator, high, total, score_factor
            )
        row_numerator, row_high, row_total = merge(
            row_numerator, row_high, row_total, node_numerator, node_high, node_total, score_factor
        )
    is_empty = row_total == 0.0
    row_high *= score_factor
    if HAS_SINKS:
        sink = tl.load(sinks + query_head, mask=real, other=0.0) * LOG2_E
        sink = tl.where(is_empty, float("-inf"), sink)
        new_high = tl.maximum(row_high, sink)
        shift = tl.where(is_empty, 0.0, new_high)
        weight = tl.exp2(row_high - shift)
        row_numerator *= weight[:, None]
        row_total = row_total * weight + tl.exp2(sink - shift)
        row_high = new_high
    divisor = tl.where(is_empty, 1.0, row_total)
    place = row * NUM_Q_HEADS + query_head
    result = rounded(row_numerator / divisor[:, None], out.dtype.element_ty, INTERPRETED)
    tl.store(out + place[:, None] * VALUE_WIDTH + v[None, :], result, mask=mask)
    natural = tl.where(is_empty, float("-inf"), (row_high + tl.log2(divisor)) * LN_2)
    tl.store(lse + place, natural, mask=real)
