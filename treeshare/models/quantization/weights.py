"""Weights of a model's linear layers and embedding in codes of 8 bits: ``native/int8.py`` has their memory.

A row of weights, like a row of activations, is mixed by an orthogonal transform, and its largest magnitude
becomes the code 127: one scale for each output, and one for each row that is multiplied by them. The memory
is laid out once, when weights are quantised, and the same on every machine: so is its hash.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from treeshare.errors import ConfigError
from treeshare.native import int8_kernels, unused_reason
from treeshare.native.int8 import PANEL, Int8Format, PackedWeights

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

INT8 = "int8"
"""The name of the only quantisation."""

MAX_TRANSFORM = 64
"""Inputs that are mixed: the largest power of two that divides a layer's inputs, up to this number."""


def require_quantization(quantization: str | None, device: str) -> None:
    """Refuse a quantisation that is not known, or that nothing computes here.

    Raises:
        ConfigError: Saying which, and what helps.
    """
    if quantization is None:
        return
    if quantization != INT8:
        raise ConfigError.of("quantization", got=quantization, expected=f"{INT8} or none")
    if device != "cpu":
        raise ConfigError.of(
            "quantization",
            got=f"{INT8} on {device}",
            expected="the CPU",
            remedy="use device cpu, or no quantization",
        )
    if int8_kernels() is None:
        reason = unused_reason() or "TREESHARE_KERNELS=none, or this CPU runs none of them"
        raise ConfigError.of(
            "quantization", got=INT8, expected="compiled kernels", remedy=f"there are none: {reason}"
        )


def int8_format(num_inputs: int, transform: int | None = None) -> Int8Format:
    """How rows of so many numbers become codes: one scale a row.

    Args:
        num_inputs: Numbers in a row.
        transform: Inputs that are mixed together, a power of two; by default as ``MAX_TRANSFORM`` says.
    """
    widest = min(num_inputs & -num_inputs, MAX_TRANSFORM)
    return Int8Format(num_inputs=num_inputs, transform=widest if transform is None else transform)


class Int8Weights:
    """Weights of a linear layer, or an embedding's table.

    Args:
        packed: Their memory.

    Attributes:
        packed: As given; after ``join`` a part of another's.
    """

    def __init__(self, packed: PackedWeights) -> None:
        self.packed = packed

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None, transform: int | None = None) -> Int8Weights:
        """Quantise ``weight`` ``[outputs, inputs]`` of any float dtype; ``transform``: of ``int8_format``."""
        return cls(PackedWeights.of(weight, int8_format(weight.shape[1], transform), bias))

    def fill(self, weight: Tensor) -> None:
        """Quantise other values of the same shape into the same memory; the bias stays."""
        self.packed.fill(weight)

    @property
    def format(self) -> Int8Format:
        """How rows that are multiplied by them become codes."""
        return self.packed.format

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Their memory by name, but for the bias, which is a weight of the model."""
        return {"codes": self.packed.codes, "scales": self.packed.scales, "sums": self.packed.sums}

    def multiply(self, x: Tensor) -> Tensor:
        """``[T, outputs]``, in the dtype of ``x`` ``[T, inputs]`` float32 or bfloat16."""
        out = torch.empty(len(x), self.packed.num_outputs, dtype=x.dtype)
        return self.packed.multiply(self.format.quantize(x), out)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows ``ids`` ``[T]`` of the weights, as near as codes are: ``[T, inputs]``.

        Raises:
            IndexError: If there is no such row.
        """
        ids = ids.to(torch.int64).contiguous()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.packed.num_outputs:
            raise IndexError("index out of range in self")  # as torch's embedding says it
        return self.packed.lookup(ids, torch.empty(len(ids), self.format.num_inputs, dtype=dtype))


def can_join(weights: Sequence[Int8Weights]) -> bool:
    """Whether layers with one input can be one: their panels are full, and their inputs are coded alike."""
    formats = {part.format for part in weights}
    return len(formats) == 1 and all(part.packed.num_outputs % PANEL == 0 for part in weights)


def join(weights: Sequence[Int8Weights]) -> Int8Weights:
    """Weights of layers with one input as one layer's, side by side; the layers' own become views of them."""
    if len(weights) == 1:
        return weights[0]
    assert can_join(weights)
    parts = [part.packed for part in weights]
    bias = None
    if any(part.bias is not None for part in parts):
        bias = torch.cat([torch.zeros(p.num_outputs) if p.bias is None else p.bias for p in parts])
    joined = PackedWeights(
        format=weights[0].format,
        num_outputs=sum(part.num_outputs for part in parts),
        codes=torch.cat([part.codes for part in parts]),
        scales=torch.cat([part.scales for part in parts], 1),
        sums=torch.cat([part.sums for part in parts], 1),
        bias=bias,
    )
    first = 0
    for part in weights:
        last = first + part.packed.num_outputs
        part.packed = replace(
            joined,
            num_outputs=last - first,
            codes=joined.codes[first // PANEL : last // PANEL],
            scales=joined.scales[:, first:last],
            sums=joined.sums[:, first:last],
            bias=None if bias is None or part.packed.bias is None else bias[first:last],
        )
        first = last
    return Int8Weights(joined)
