"""A kernel around the conversions of ``triton_blocks``; imports Triton."""

import torch
import triton
import triton.language as tl

from treeshare.attention.triton.blocks import rounded as to_dtype
from treeshare.attention.triton.blocks import widened as to_float32


@triton.jit
def _round_trip(values, rounded, widened, SIZE: tl.constexpr, INTERPRETED: tl.constexpr):
    n = tl.arange(0, SIZE)
    low = to_dtype(tl.load(values + n), tl.bfloat16, INTERPRETED)
    tl.store(rounded + n, low)
    tl.store(widened + n, to_float32(low, INTERPRETED))


def round_trip(values):
    """Float32 ``values`` rounded to bfloat16, and that in float32 again, interpreted."""
    rounded, widened = torch.empty_like(values, dtype=torch.bfloat16), torch.empty_like(values)
    _round_trip[(1,)](values, rounded, widened, SIZE=values.numel(), INTERPRETED=True)
    return rounded, widened
