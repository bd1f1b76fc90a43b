"""Calls of every kernel with given inputs, whose results are compared between CPUs."""

from __future__ import annotations

import numpy as np

from tests.native.calls import Case, to_element
from tests.native.operations import KINDS
from treeshare.native import number_of, structs

LINEARS = [(2, 1), (6, 16), (34, 47), (90, 48), (576, 49), (1544, 100), (64, 320)]
"""Inputs and outputs: whole words, chunks and panels, and not."""

NUM_ROWS = (1, 2, 3, 4, 5, 6, 7, 13)


def linear_case(element):
    """Every shape; the rows are the first of the same ones."""
    case = Case(element)
    for num_inputs, num_outputs in LINEARS:
        weight, bias = case.given(num_outputs, num_inputs), case.given(num_outputs)
        x = case.given(max(NUM_ROWS), num_inputs)
        layer = case.calls.struct(
            structs.Linear, weight=weight, bias=bias, num_inputs=num_inputs, num_outputs=num_outputs
        )
        for num_rows in NUM_ROWS:
            out = case.filled(f"{num_inputs} {num_outputs} {num_rows}", num_rows, num_outputs)
            case.calls.call(f"linear_{element}", layer, x, out, num_rows)
    return case


HEADS, GROUP, DIM, WIDTH, PAGE = 2, 3, 48, 64, 16
PREFIX, OWN, PREFILLED = 300, 70, 20
PRIVATE = (1, 16, 17, 40, 3)
"""Tokens on the pages of the rows that decode."""


WINDOW, NARROW = 30, 36
"""With windows: the positions that a row sees, and the width of values, which is not that of keys."""


def attention_case(element, decoding=PRIVATE, prefilled=PREFILLED, *, has_features=False):
    """A prefix of two blocks, a segment whose last tokens are computed, and rows with pages of their own.

    ``has_features``: windows, a soft cap, sinks, and values narrower than keys.
    """
    case = Case(element, seed=1)
    num_rows = prefilled + len(decoding)
    lengths, padded = (PREFIX, OWN), (320, 128)
    keys = [case.given(HEADS, DIM, tokens) for tokens in padded]
    values = [case.given(HEADS, tokens, WIDTH) for tokens in padded]
    pieces = np.zeros(4, structs.PIECE)
    pieces["padded_tokens"], pieces["num_tokens"] = padded * 2, lengths * 2
    at = case.calls.structs(pieces, keys=[(k, 0) for k in keys * 2], values=[(v, 0) for v in values * 2])
    slices = np.zeros(2, structs.SLICE)
    slices["first_row"], slices["last_row"] = (0, prefilled), (prefilled, num_rows)
    slices["first_piece"], slices["num_pieces"], slices["num_keys"] = (0, 2), 2, PREFIX + OWN
    slices["first_own_token"], slices["causal"] = (OWN - PREFILLED, 0), (1, 0)
    used = slices[slices["last_row"] > slices["first_row"]]
    pages = np.array([-(-tokens // PAGE) for tokens in decoding])
    pool = int(sum(-(-tokens // PAGE) for tokens in PRIVATE))
    value_width, more = DIM, {}
    if has_features:
        value_width = NARROW
        own = [*range(OWN - prefilled, OWN), *(OWN - 1 + tokens for tokens in decoding)]
        first_seen = PREFIX + np.array(own) - (WINDOW - 1)
        more["first_seen"] = case.calls.array(first_seen)
        more["hidden_tokens"] = case.calls.array(np.maximum(first_seen - (PREFIX + OWN), 0))
        more["sinks"] = case.calls.array(np.linspace(-3, 3, HEADS * GROUP, dtype=np.float32))
        more["soft_cap"] = 2.0
    step = case.calls.struct(
        structs.TreeStep,
        num_rows=num_rows,
        num_kv_heads=HEADS,
        group_size=GROUP,
        key_width=DIM,
        value_width=value_width,
        stored_width=WIDTH,
        page_size=PAGE,
        num_slices=len(used),
        slices=case.calls.array(used),
        pieces=at,
        page_indptr=case.calls.array(np.concatenate([np.zeros(prefilled + 1, int), pages.cumsum()])),
        pages=case.calls.array(np.arange(pages.sum())),
        private_tokens=case.calls.array(np.array([0] * prefilled + list(decoding))),
        pool_keys=case.given(pool, HEADS, DIM, PAGE),
        pool_values=case.given(pool, HEADS, PAGE, WIDTH),
        **more,
    )
    shapes = ((HEADS * GROUP, DIM), (HEADS, DIM), (HEADS, value_width))
    drawn = [case.numbers(PREFILLED + len(PRIVATE), *shape) for shape in shapes]
    rows = [*range(prefilled), *range(PREFILLED, PREFILLED + len(decoding))]
    query, key, value = (case.calls.array(part[rows]) for part in drawn)
    projections = case.calls.struct(
        structs.Projections,
        query=query,
        key=key,
        value=value,
        query_stride=HEADS * GROUP * DIM,
        key_stride=HEADS * DIM,
        value_stride=HEADS * value_width,
    )
    out = case.filled("out", num_rows, HEADS * GROUP, value_width)
    lse = case.calls.result("lse", np.zeros((num_rows, HEADS * GROUP), np.float32))
    case.calls.call(f"attend_{element}", step, projections, DIM**-0.5, out, lse)
    return case


def featured_attention_case(element):
    """Attention with all its features."""
    return attention_case(element, has_features=True)


def every_size(element):
    """Numbers of every exponent, and infinities; no NaN, whose bits come from either operand."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    low = np.random.default_rng(2).integers(1 << 16, size=1 << 16, dtype=np.uint32)
    values = (upper | (low if element == "float32" else 0)).view(np.float32)
    return to_element(np.where(np.isnan(values), np.float32(1.5), values), element)


def rows_case(element):
    """Every operation on rows of numbers of every size; norms of tame ones, too."""
    case = Case(element, seed=3)
    values, width = every_size(element), 80
    num_rows = len(values) // width
    shape = (num_rows, width)
    wild = [values[: num_rows * width].reshape(shape)]
    wild += [case.draws.permutation(values)[: num_rows * width].reshape(shape) for _ in range(2)]
    wild, tame = [case.calls.array(part) for part in wild], [case.given(*shape) for _ in range(3)]
    weight, bias = case.given(width), case.given(width)
    none = structs.Place(number_of("NO_BUFFER"), 0, 0)
    operands = dict(zip("abc", (structs.Place(index, 0, 0) for index in range(3)), strict=True))
    for kind in KINDS:
        for name, given in (("wild", wild), ("tame", tame)):
            rows = np.zeros(4, np.dtype(structs.Buffer))
            rows["row_stride"], rows["is_float32"] = width, element == "float32"
            out = case.filled(f"{kind} {name}", *shape)
            is_norm = kind.endswith("NORM")
            operation = case.calls.struct(
                structs.Operation,
                kind=number_of(kind),
                flags=number_of("ROUND") + number_of("ROUND_INNER"),
                groups=1,
                width=width,
                **(operands | ({"b": none, "c": none} if is_norm else {})),
                out=structs.Place(3, 0, 0),
                number=1e-3,
                linear__weight=weight,
                linear__bias=bias,
            )
            program = case.calls.struct(
                structs.Program,
                operations=operation,
                num_operations=1,
                buffers=case.calls.structs(rows, address=[(part, 0) for part in (*given, out)]),
                num_rows=num_rows,
                row_numbers=1,
            )
            case.calls.call(f"run_{element}", program)
    return case


def drawing_case(element):
    """Greedy, and each filter; one row has a NaN, ten have masks, three have biases."""
    case, num_rows, vocab_size = Case(element, seed=4), 20, 3000
    logits = case.numbers(num_rows, vocab_size, scale=4)
    logits[7, 5] = to_element([np.nan], element)[0]
    kinds = np.arange(num_rows) % 5
    words = case.draws.integers(0, 2**32, (10, 94), np.uint32)
    words[5:] &= words[:5] & words[[1, 2, 3, 4, 0]] & words[5:][::-1]  # few tokens
    masks, row_bytes = case.calls.array(words), words[0].nbytes
    num_biases = np.isin(np.arange(num_rows), [3, 8, 12]) * 2
    draws = case.calls.struct(
        structs.Draws,
        masks=case.calls.structs(
            np.zeros(num_rows, [("mask", "u8")]), mask=[(masks, i * row_bytes) for i in range(len(words))]
        ),
        bias_indptr=case.calls.array(np.cumsum([0, *num_biases])),
        bias_tokens=case.calls.array(np.array([5, 2999, 0, 17, 9, 1000])),
        bias_values=case.calls.array(np.array([9, 7.5, -100, 8, 100, 0.25], np.float32)),
        num_rows=num_rows,
        vocab_size=vocab_size,
        stride=vocab_size,
        is_bfloat16=element == "bfloat16",
        logits=case.calls.array(logits),
        rows=case.calls.array(np.arange(num_rows)),
        temperatures=case.calls.array(np.array([0, 1, 0.3, 1, 1.7], np.float32)[kinds]),
        top_k=case.calls.array(np.array([0, 0, 5, 0, 300])[kinds]),
        top_p=case.calls.array(np.array([1, 1, 1, 0.9, 0.5])[kinds]),
        margins=case.calls.array(np.array([-np.inf, -np.inf, -np.inf, -np.inf, -3.0])[kinds]),
        indptr=case.calls.array(4 * np.arange(num_rows + 1)),
        uniforms=case.calls.array(case.draws.random(4 * num_rows)),
        tokens=case.calls.result("tokens", np.full(4 * num_rows, -1)),
        logprobs=case.calls.result("logprobs", np.zeros(4 * num_rows)),
        broken=case.calls.result("broken", np.zeros(num_rows, np.int64)),
    )
    case.calls.call("draw", draws)
    return case


def experts_case(element):
    """Three experts with a gate of two halves; a row that names one twice, and one that names none."""
    case = Case(element, seed=6)
    num_experts, num_rows, top_k, num_inputs, width, num_outputs = 3, 7, 2, 90, 34, 47
    shapes = ((2 * width, num_inputs), (num_outputs, width))
    linears = []
    for outputs, inputs in shapes:
        parts = [(case.given(outputs, inputs), case.given(outputs)) for _ in range(num_experts)]
        rows = np.zeros(num_experts, np.dtype(structs.Linear))
        rows["num_inputs"], rows["num_outputs"] = inputs, outputs
        weights, biases = zip(*parts, strict=True)
        linears.append(
            case.calls.structs(
                rows, weight=[(part, 0) for part in weights], bias=[(part, 0) for part in biases]
            )
        )
    rows = np.zeros(2, np.dtype(structs.Buffer))
    rows["row_stride"], rows["is_float32"] = (2 * width, width), element == "float32"
    memory = [case.given(num_rows * top_k, part) for part in (2 * width, width)]
    none = structs.Place(number_of("NO_BUFFER"), 0, 0)
    gate = case.calls.struct(
        structs.Operation,
        kind=number_of("MULTIPLY"),
        flags=number_of("ROUND"),
        groups=1,
        width=width,
        a=structs.Place(0, 0, 0),
        b=structs.Place(0, width, 0),
        c=none,
        out=structs.Place(1, 0, 0),
    )
    program = case.calls.struct(
        structs.Program,
        operations=gate,
        num_operations=1,
        buffers=case.calls.structs(rows, address=[(part, 0) for part in memory]),
        row_numbers=1,
    )
    chosen = np.array([[0, 1], [2, 0], [1, 1], [2, 1], [3, 0], [0, 2], [1, 2]])
    experts = case.calls.struct(
        structs.Experts,
        up=linears[0],
        down=linears[1],
        gate=program,
        gated=1,
        num_experts=num_experts,
        num_rows=num_rows,
        top_k=top_k,
        x=case.given(num_rows, num_inputs),
        chosen=case.calls.array(chosen),
        weights=case.calls.array(case.draws.random((num_rows, top_k), np.float32)),
        out=case.filled("out", num_rows, num_outputs),
        indptr=case.calls.array(np.zeros(num_experts + 1, np.int64)),
        places=case.calls.array(np.zeros(chosen.shape, np.int64)),
        gathered=case.given(num_rows * top_k, num_inputs),
        given=case.given(num_rows * top_k, num_outputs),
    )
    case.calls.call(f"experts_{element}", experts)
    return case


def softmax_case(element):
    """Rows of the vocabulary; the kernels are float32's for every element."""
    case, num_rows, vocab_size = Case("float32", seed=5), 3, 1024
    x = np.clip(every_size("float32"), -200, 0)
    logits = case.given(num_rows, vocab_size, scale=4)
    case.calls.call("exp", case.calls.result("exp", x), len(x))
    case.calls.call("sum_blocks", logits, case.calls.result("sums", np.zeros(12)), 12)
    out = case.filled("log_softmax", num_rows, vocab_size)
    case.calls.call("log_softmax", logits, out, num_rows, vocab_size)
    return case


CASES = {
    "linear": linear_case,
    "attention": attention_case,
    "attention with features": featured_attention_case,
    "rows": rows_case,
    "drawing": drawing_case,
    "experts": experts_case,
    "softmax": softmax_case,
}
