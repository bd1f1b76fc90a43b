"""Rows with nothing but temperature, top-k, top-p and min-p, drawn by a compiled kernel."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.native import kernels
from treeshare.native.structs import Draws

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.sampling.params import SamplingParams


HONOURED = frozenset({"temperature", "top_k", "top_p", "min_p"})
"""The parameters that the kernel applies; a row that needs another takes the general path."""


def can_draw(params: SamplingParams) -> bool:
    """Whether the kernel is there and a row of such parameters needs no more than it does."""
    return kernels() is not None and not params.needs_more_than(HONOURED)


def draw_compiled(
    logits: Tensor,
    rows: NDArray[np.int64],
    params: Sequence[SamplingParams],
    indptr: NDArray[np.int64],
    uniforms: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Draw tokens; a row's result does not depend on the others.

    Args:
        logits: ``[R, V]`` float32 or bfloat16, its rows dense.
        rows: ``[P]``: which of them.
        params: ``[P]``.
        indptr: ``[P + 1]``: the draws of each.
        uniforms: ``[num_draws]``.

    Returns:
        ``[num_draws]`` tokens and log-probabilities, and which of ``rows`` hold NaN, infinity or nothing
        finite.
    """
    library = kernels()
    assert library is not None, "can_draw says whether the kernel is there"
    limits = torch.finfo(torch.float32)
    temperatures = [one.temperature for one in params]
    heat = [t if t == 0 else min(max(t, limits.tiny), limits.max) for t in temperatures]
    tokens, logprobs = np.zeros(len(uniforms), np.int64), np.zeros(len(uniforms))
    broken = np.zeros(len(rows), np.int64)
    arrays = [
        np.ascontiguousarray(values, dtype)
        for values, dtype in (
            (rows, "i8"),
            (heat, "f4"),
            ([max(one.top_k, 0) for one in params], "i8"),
            ([one.top_p for one in params], "f8"),
            ([one.min_p for one in params], "f4"),
            (indptr, "i8"),
            (uniforms, "f8"),
        )
    ]
    draws = Draws(
        len(rows),
        logits.shape[1],
        logits.stride(0),
        int(logits.dtype == torch.bfloat16),
        logits.data_ptr(),
        *(array.ctypes.data for array in (*arrays, tokens, logprobs, broken)),
    )
    library.treeshare_draw(ctypes.byref(draws))
    return tokens, logprobs, rows[broken > 0]
