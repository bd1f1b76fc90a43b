"""What ``coded_attention.h`` computes, in float64: a prompt's keys and values are codes of 8 bits."""

from __future__ import annotations

import torch

from treeshare.models.quantization.oracle import as_codes
from treeshare.native.structs import KEY_BLOCK

STEPS = 254


def coded_oracle(forest):
    """``out`` and ``lse`` of a forest's rows, float64. Generated tokens' keys and values stay as they are."""
    case = forest.case
    heads = case.num_kv_heads * case.group_size
    out = torch.zeros(forest.layout.num_rows, heads, case.value_width, dtype=torch.float64)
    lse = torch.zeros(forest.layout.num_rows, heads, dtype=torch.float64)
    sources = dict(zip(forest.layout.decode_rows.tolist(), forest.layout.decodes, strict=True))
    for row, (keys, values) in enumerate(forest.seen):
        own = len(keys) - 1
        num_prompt = sources[row].segment.end if row in sources else len(keys)
        first = 0 if case.window is None else max(0, own + 1 - case.window)
        for head in range(heads):
            kv_head = head // case.group_size
            sinks = [] if forest.sinks is None else [forest.sinks[head].double()]
            out[row, head], lse[row, head] = _attend(
                *(forest.query[row, head], keys[:, kv_head], values[:, kv_head]),
                *(num_prompt, first, sinks, case),
            )
    return out, lse


def _attend(query, keys, values, num_prompt, first, sinks, case):
    width = min(case.head_dim & -case.head_dim, 64)
    (query_codes, query_scale), (codes, scales) = as_codes(query[None], width), as_codes(keys, width)
    scores = (codes @ query_codes[0]) * query_scale[0] * scales[:, 0]
    scores[num_prompt:] = keys[num_prompt:].double() @ query.double()
    scores = scores * case.spec.scale
    if case.soft_cap is not None:
        scores = case.soft_cap * torch.tanh(scores / case.soft_cap)
    scores[:first] = -torch.inf
    lse = torch.cat([scores, *(sink[None] for sink in sinks)]).logsumexp(0)
    weights = (scores - lse).exp()
    value_codes, value_scales = as_codes(values, 1)
    total = weights[num_prompt:] @ values[num_prompt:].double()
    for start in range(0, num_prompt, KEY_BLOCK):
        block = slice(start, min(start + KEY_BLOCK, num_prompt))
        parts = weights[block] * value_scales[block, 0]
        if parts.max() > 0:
            scale = parts.max() / STEPS
            total = total + (parts / scale).round() @ value_codes[block] * scale
    return total, lse
