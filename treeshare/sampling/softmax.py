"""Exponentials, their sums and logarithms: the compiled kernels' where there are any, else torch's.

A C library, and torch, have several versions of each, chosen by the CPU, whose last bits differ; the
kernels' are the same on every CPU that has the level (``native/softmax.h``, ``native/numbers.h``).

Shapes: ``R`` rows, ``V`` vocabulary, ``B`` blocks.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from treeshare.native import functions, kernels

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 256
"""Tokens of a block."""


def in_blocks(weights: Tensor) -> Tensor:
    """``[R, V]`` as ``[R, B, BLOCK]``; a last block that is not full is padded with zeros."""
    missing = -weights.shape[1] % BLOCK
    whole = functional.pad(weights, (0, missing)) if missing else weights
    return whole.view(weights.shape[0], -1, BLOCK)


def block_sums(weights: Tensor) -> Tensor:
    """Sums of blocks: ``[R, V]`` float32 to ``[R, B]`` float64."""
    blocks, library = in_blocks(weights), _kernels_for(weights)
    if library is None:
        return blocks.sum(-1).double()
    dense = blocks.contiguous()
    sums = torch.empty(blocks.shape[:2], dtype=torch.float64)
    library.treeshare_sum_blocks(dense.data_ptr(), sums.data_ptr(), sums.numel())
    return sums


def exp_(x: Tensor) -> Tensor:
    """``exp(x)`` in place, for float32 ``x <= 0``, dense."""
    library = _kernels_for(x)
    if library is None:
        return x.exp_()
    assert x.is_contiguous()
    library.treeshare_exp(x.data_ptr(), x.numel())
    return x


def log(x: Tensor) -> Tensor:
    """``log(x)`` for float64 ``x > 0`` in the host's memory."""
    library = _functions()
    if library is None:
        return x.log()
    dense = x.contiguous()
    out = torch.empty_like(dense)
    library.treeshare_log(dense.data_ptr(), out.data_ptr(), out.numel())
    return out


def log_of(x: float) -> float:
    """``log(x)`` for one number above 0."""
    library = _functions()
    if library is None:
        return math.log(x)
    values = np.array([x, 0.0])
    library.treeshare_log(values.ctypes.data, values[1:].ctypes.data, 1)
    return float(values[1])


def log_softmax(logits: Tensor) -> Tensor:
    """``[..., V]`` float32 natural logs of probabilities, of logits of any dtype, on their device."""
    rows = logits.float().contiguous()
    library = _kernels_for(rows)
    if library is None:
        return rows.log_softmax(-1)
    out = torch.empty_like(rows)
    library.treeshare_log_softmax(
        rows.data_ptr(), out.data_ptr(), rows.numel() // rows.shape[-1], rows.shape[-1]
    )
    return out


def _functions() -> Any | None:  # noqa: ANN401
    """The library's functions of numbers where kernels are used; else None."""
    return None if kernels(torch.float32) is None else functions()


def _kernels_for(x: Tensor) -> Any | None:  # noqa: ANN401
    """The kernels where they can read ``x``, float32; else None."""
    return kernels(torch.float32) if x.device.type == "cpu" else None
