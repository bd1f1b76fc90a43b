"""What the Triton kernels have in common: loads, one block of online softmax, states and their merge.

``TRITON_INTERPRET=1`` runs the same code on a CPU. There bfloat16 is a 16-bit integer to NumPy: arithmetic on
it is silently wrong and conversion to it truncates. ``INTERPRETED`` makes ``operand`` and ``rounded`` go
through float32 and round to nearest even.

Shapes: ``M`` stacked query rows, ``D`` width of a key and ``V`` of a value, each up to a power of two, ``n``
keys of a block.
"""

import triton
import triton.language as tl


@triton.jit
def widened(x, INTERPRETED: tl.constexpr):
    """``x`` in float32; exact."""
    if INTERPRETED and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(tl.float32)


@triton.jit
def rounded(x, dtype: tl.constexpr, INTERPRETED: tl.constexpr):
    """Float32 ``x`` in ``dtype``, rounded to nearest even."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return tl.where(x == x, nearest, 0x7FC0).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return x.to(dtype)


@triton.jit
def operand(x, INTERPRETED: tl.constexpr):
    """``x`` in a dtype that ``tl.dot`` takes: float32 where interpreted."""
    if INTERPRETED:
        return widened(x, INTERPRETED)
    return x


@triton.jit
def nothing(BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr):
    """The state of attention over no keys, for ``BLOCK_M`` rows."""
    return (
        tl.zeros([BLOCK_M, BLOCK_V], tl.float32),
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
    )


@triton.jit
def merge(numerator, high, total, other_numerator, other_high, other_total, score_factor):
    """Merge two states; ``(0, -inf, 0)``, attention over nothing, is the identity, exactly."""
    new_high = tl.maximum(high, other_high)
    shift = tl.where(new_high == float("-inf"), 0.0, new_high)
    weight = tl.exp2((high - shift) * score_factor)
    other_weight = tl.exp2((other_high - shift) * score_factor)
    return (
        numerator * weight[:, None] + other_numerator * other_weight[:, None],
        new_high,
        total * weight + other_total * other_weight,
    )


@triton.jit
def load_query(
    query, row, head, row_stride, head_stride, d, real, KEY_WIDTH: tl.constexpr, INTERPRETED: tl.constexpr
):
    """Queries of ``row`` and ``head``, each ``[M]``: ``[M, D]``, zero where not ``real``."""
    place = row.to(tl.int64)[:, None] * row_stride + head[:, None] * head_stride + d[None, :]
    tile = tl.load(query + place, mask=real[:, None] & (d < KEY_WIDTH)[None, :], other=0.0)
    return operand(tile, INTERPRETED)


@triton.jit
def load_parts(
    query, row, head, row_stride, head_stride, d, real, KEY_WIDTH: tl.constexpr, INTERPRETED: tl.constexpr
):
    """Queries for ``products``: whole, or the first half of ``D`` and the second with its sign changed."""
    WIDTH: tl.constexpr = d.shape[0] // 2
    if query.dtype.element_ty == tl.float32 and WIDTH >= 128:
        half = tl.arange(0, WIDTH)
        low = load_query(query, row, head, row_stride, head_stride, half, real, KEY_WIDTH, INTERPRETED)
        half += WIDTH
        high = load_query(query, row, head, row_stride, head_stride, half, real, KEY_WIDTH, INTERPRETED)
        parts = (low, -high)
    else:
        whole = load_query(query, row, head, row_stride, head_stride, d, real, KEY_WIDTH, INTERPRETED)
        parts = (whole,)
    return parts


@triton.jit
def load_keys(keys, n, token_stride, dim_stride, d, KEY_WIDTH: tl.constexpr, INTERPRETED: tl.constexpr):
    """Keys ``[D, n]`` of tokens ``n``; zero beyond ``KEY_WIDTH``."""
    keys += d[:, None] * dim_stride + n[None, :] * token_stride
    if d.shape[0] == KEY_WIDTH:
        return operand(tl.load(keys), INTERPRETED)
    return operand(tl.load(keys, mask=(d < KEY_WIDTH)[:, None], other=0.0), INTERPRETED)


@triton.jit
def products(query, keys, n, token_stride, dim_stride, d, KEY_WIDTH: tl.constexpr, INTERPRETED: tl.constexpr):
    """Products ``[M, n]`` of queries and keys, in float32.

    One running sum over 256 products is twice as far from the truth as libraries' blocked sums, so float32
    takes two of 128. They are subtracted: the compiler would make one running sum of two that are added.
    """
    if len(query) == 1:
        keys_t = load_keys(keys, n, token_stride, dim_stride, d, KEY_WIDTH, INTERPRETED)
        scores = tl.dot(query[0], keys_t, input_precision="ieee")
    else:
        half = tl.arange(0, d.shape[0] // 2)
        low = load_keys(keys, n, token_stride, dim_stride, half, KEY_WIDTH, INTERPRETED)
        high = load_keys(keys, n, token_stride, dim_stride, half + d.shape[0] // 2, KEY_WIDTH, INTERPRETED)
        scores = tl.dot(query[0], low, input_precision="ieee")
        scores -= tl.dot(query[1], high, input_precision="ieee")
    return scores


@triton.jit
def load_values(values, n, v, VALUE_WIDTH: tl.constexpr, STORED_WIDTH: tl.constexpr):
    """Values ``[n, V]`` of tokens ``n``; zero beyond ``VALUE_WIDTH``."""
    values += n[:, None] * STORED_WIDTH + v[None, :]
    if v.shape[0] == VALUE_WIDTH:
        return tl.load(values)
    return tl.load(values, mask=(v < VALUE_WIDTH)[None, :], other=0.0)


@triton.jit
def tanh(x):
    """Hyperbolic tangent, within two units in the last place: below 0.6 by a quotient of polynomials (Padé).

    Written out because no function of Triton's is the same interpreted and on a device.
    """
    square = x * x
    numerator = x * (945.0 + square * (105.0 + square))
    near_zero = numerator / (945.0 + square * (420.0 + square * 15.0))
    small = tl.exp2(tl.abs(x) * -2.885390081777927)  # exp(-2|x|)
    far = (1.0 - small) / (1.0 + small)
    return tl.where(tl.abs(x) < 0.6, near_zero, tl.where(x < 0.0, -far, far))


@triton.jit
def attend_block(numerator, high, total, scores, values, seen, score_factor, INTERPRETED: tl.constexpr):
    """One step of online softmax: rows with ``scores`` ``[M, n]`` over ``values`` ``[n, V]``."""
    scores = tl.where(seen, scores, float("-inf"))  # also where an unwritten key made it NaN
    new_high = tl.maximum(high, tl.max(scores, 1))
    shift = tl.where(new_high == float("-inf"), 0.0, new_high)
    weights = tl.exp2((scores - shift[:, None]) * score_factor)  # scaled last: the likeliest keys lose least
    old_weight = tl.exp2((high - shift) * score_factor)
    total = total * old_weight + tl.sum(weights, 1)
    factors = operand(rounded(weights, values.dtype, INTERPRETED), INTERPRETED)
    numerator = tl.dot(
        factors, operand(values, INTERPRETED), numerator * old_weight[:, None], input_precision="ieee"
    )
    return numerator, new_high, total


@triton.jit
def attend_keys(
    numerator,
    high,
    total,
    query,
    keys,
    values,
    n,
    token_stride,
    dim_stride,
    d,
    v,
    seen,
    score_factor,
    cap_factor,
    KEY_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    STORED_WIDTH: tl.constexpr,
    CAPPED: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """One step of online softmax over keys and values of tokens ``n``, as far as they are ``seen``."""
    scores = products(query, keys, n, token_stride, dim_stride, d, KEY_WIDTH, INTERPRETED)
    if CAPPED:
        scores = tanh(scores * cap_factor)
    tile_values = load_values(values, n, v, VALUE_WIDTH, STORED_WIDTH)
    return attend_block(numerator, high, total, scores, tile_values, seen, score_factor, INTERPRETED)


@triton.jit
def address(bases, block, part: tl.constexpr, pointer_type: tl.constexpr):
    """Where the keys (``part`` 0) or the values (1) of a block begin."""
    return tl.multiple_of(tl.load(bases + 2 * block + part).to(pointer_type), 16)


@triton.jit
def store_state(
    numerators,
    highs,
    totals,
    numerator,
    high,
    total,
    slot,
    head,
    v,
    real,
    NUM_Q_HEADS: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
):
    """Store the ``real`` ones of the states of ``slot`` and ``head``, each ``[M]``, for ``merge_states``."""
    place = slot.to(tl.int64) * NUM_Q_HEADS + head
    mask = real[:, None] & (v < VALUE_WIDTH)[None, :]
    tl.store(numerators + place[:, None] * VALUE_WIDTH + v[None, :], numerator, mask=mask)
    tl.store(highs + place, high, mask=real)
    tl.store(totals + place, total, mask=real)
