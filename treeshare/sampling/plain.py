"""Rows with nothing but a temperature, drawn by a compiled kernel in two passes over the logits."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.native import kernels
from treeshare.sampling.filters import has_filters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.sampling.params import SamplingParams


class _Draws(ctypes.Structure):
    """A batch of draws as the kernel sees it; the field names are those of ``native/sampling.cpp``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("num_rows", "vocab_size", "stride", "is_bfloat16")),
        *((name, ctypes.c_void_p) for name in ("logits", "rows", "temperatures", "indptr", "uniforms")),
        *((name, ctypes.c_void_p) for name in ("tokens", "logprobs", "broken")),
    )


def is_plain(params: SamplingParams) -> bool:
    """Whether the kernel is there and a row of such parameters needs no more than it does."""
    needs_more = has_filters(params) or params.has_penalties or params.logprobs is not None
    return not needs_more and kernels() is not None


def draw_plain(
    logits: Tensor,
    rows: NDArray[np.int64],
    temperatures: Sequence[float],
    indptr: NDArray[np.int64],
    uniforms: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Draw tokens; a row's result does not depend on the others.

    Args:
        logits: ``[R, V]`` float32 or bfloat16, its rows dense.
        rows: ``[P]``: which of them.
        temperatures: ``[P]``.
        indptr: ``[P + 1]``: the draws of each.
        uniforms: ``[num_draws]``.

    Returns:
        ``[num_draws]`` tokens and log-probabilities, and which of ``rows`` hold NaN, infinity or nothing
        finite.
    """
    library = kernels()
    assert library is not None, "is_plain says whether the kernel is there"
    limits = torch.finfo(torch.float32)
    heat = [t if t == 0 else min(max(t, limits.tiny), limits.max) for t in temperatures]
    tokens, logprobs = np.zeros(len(uniforms), np.int64), np.zeros(len(uniforms))
    broken = np.zeros(len(rows), np.int64)
    arrays = [
        np.ascontiguousarray(values, dtype)
        for values, dtype in ((rows, "i8"), (heat, "f4"), (indptr, "i8"), (uniforms, "f8"))
    ]
    draws = _Draws(
        len(rows),
        logits.shape[1],
        logits.stride(0),
        int(logits.dtype == torch.bfloat16),
        logits.data_ptr(),
        *(array.ctypes.data for array in (*arrays, tokens, logprobs, broken)),
    )
    library.treeshare_draw(ctypes.byref(draws))
    return tokens, logprobs, rows[broken > 0]
