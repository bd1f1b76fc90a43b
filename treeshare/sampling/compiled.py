"""Rows with nothing but masks, bias, temperature, min-p, top-k and top-p, drawn by a compiled kernel."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.native import kernel_level, kernels
from treeshare.native.structs import Draws
from treeshare.sampling.filters import min_p_margin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.sampling.masks import Mask
    from treeshare.sampling.params import SamplingParams


HONOURED = frozenset({"temperature", "top_k", "top_p", "min_p", "logit_bias"})
"""The parameters that the kernel applies, beside masks; a row that needs another takes the general path."""


def can_draw(params: SamplingParams) -> bool:
    """Whether the kernel is available and applies all that a row of such parameters needs."""
    return kernel_level() != "none" and not params.needs_more_than(HONOURED)


def draw_compiled(
    logits: Tensor,
    rows: NDArray[np.int64],
    params: Sequence[SamplingParams],
    masks: Sequence[Mask | None],
    indptr: NDArray[np.int64],
    uniforms: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Draw tokens; a row's result does not depend on the others.

    Args:
        logits: ``[R, V]`` float32 or bfloat16, each row contiguous; not modified.
        rows: ``[P]`` int64: the rows of ``logits`` to draw from.
        params: ``[P]`` parameters of each; ``can_draw`` holds for them.
        masks: ``[P]``: tokens that may be drawn, see ``masks``; None for all.
        indptr: ``[P + 1]`` int64: draws ``indptr[i]`` to ``indptr[i + 1]`` are those of ``rows[i]``.
        uniforms: ``[num_draws]`` float64 in [0, 1).

    Returns:
        ``[num_draws]`` tokens and log-probabilities, and ``[P]`` whether a row holds NaN, infinity or nothing
        finite: 0, or 1, or 2 if only after masks and bias.
    """
    library = kernels(logits.dtype)
    assert library is not None, "can_draw says whether the kernel is available"
    limits = torch.finfo(torch.float32)
    temperatures = [row.temperature for row in params]
    clamped = [t if t == 0 else min(max(t, limits.tiny), limits.max) for t in temperatures]
    tokens, logprobs = np.zeros(len(uniforms), np.int64), np.zeros(len(uniforms))
    broken = np.zeros(len(rows), np.int64)
    arrays = [
        np.ascontiguousarray(values, dtype)
        for values, dtype in (
            (rows, "i8"),
            (clamped, "f4"),
            ([max(row.top_k, 0) for row in params], "i8"),
            ([row.top_p for row in params], "f8"),
            ([min_p_margin(row) for row in params], "f8"),
            (indptr, "i8"),
            (uniforms, "f8"),
        )
    ]
    words = [None if mask is None else np.ascontiguousarray(mask, np.uint32) for mask in masks]
    addresses = np.array([0 if mask is None else mask.ctypes.data for mask in words], np.uint64)
    biases = [row.logit_bias or {} for row in params]
    arrays += [
        addresses,
        np.cumsum([0, *map(len, biases)], dtype=np.int64),
        np.array([token for bias in biases for token in bias], np.int64),
        np.array([value for bias in biases for value in bias.values()], np.float32),
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
    return tokens, logprobs, broken
