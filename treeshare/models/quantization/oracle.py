"""What a linear layer with int8 weights computes, written down once more in float64: the judge's reference.

Nothing of it is shared with ``native/int8.h``: the transform is a matrix, and codes are never packed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def hadamard(width: int) -> Tensor:
    """The orthogonal matrix ``[width, width]`` of a transform, float64; a power of two."""
    matrix: Tensor = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.div(width**0.5)


def as_codes(rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Codes ``[T, inputs]`` and scales ``[T, 1]`` of ``rows`` ``[T, inputs]``, float64."""
    blocks = rows.double().reshape(len(rows), -1, width) @ hadamard(width)
    mixed = blocks.reshape(rows.shape)
    largest = mixed.abs().amax(-1, keepdim=True)
    codes = torch.where(largest > 0, (mixed * (127 / largest)).round(), torch.zeros_like(mixed))
    return codes, largest / 127


class OracleLinear:
    """The forward of a linear layer, by codes made of its own float weights.

    Args:
        linear: A linear layer.
        width: Inputs that are mixed together.
    """

    def __init__(self, linear: nn.Module, width: int) -> None:
        self._linear, self._width = linear, width

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., outputs]`` of ``x`` ``[..., inputs]``, rounded once to its dtype."""
        weight: Tensor = self._linear.weight  # type: ignore[assignment]
        weight = weight.t() if isinstance(self._linear, Conv1D) else weight
        codes, scales = as_codes(x.reshape(-1, x.shape[-1]), self._width)
        weight_codes, weight_scales = as_codes(weight, self._width)
        out = codes @ weight_codes.t() * scales * weight_scales.t()
        if self._linear.bias is not None:
            out = out + self._linear.bias.double()  # type: ignore[operator]
        return out.to(x.dtype).view(*x.shape[:-1], -1)
