"""A kernel around the conversions of ``triton_kernels``; imports Triton."""

import torch
import triton
import triton.language as tl

from treeshare.attention.triton_kernels import _rounded, _widened


@triton.jit
def _round_trip(values, rounded, widened, SIZE: tl.constexpr, INTERPRETED: tl.constexpr):
    n = tl.arange(0, SIZE)
    low = _rounded(tl.load(values + n), tl.bfloat16, INTERPRETED)
    tl.store(rounded + n, low)
    tl.store(widened + n, _widened(low, INTERPRETED))


def round_trip(values):
    """Float32 ``values`` rounded to bfloat16, and that in float32 again, interpreted."""
    rounded, widened = torch.empty_like(values, dtype=torch.bfloat16), torch.empty_like(values)
    _round_trip[(1,)](values, rounded, widened, SIZE=values.numel(), INTERPRETED=True)
    return rounded, widened
