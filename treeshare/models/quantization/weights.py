"""A layer's weights in codes of 8 bits, as the kernels read them: ``native/int8.h`` says what codes stand for.

A row of weights, like a row of activations, is mixed by an orthogonal transform, and its largest magnitude
becomes the code 127: one scale for each output, and one for each row that is multiplied by them. The memory
is laid out once, when weights are quantised, and the same on every machine: so is its hash.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import ConfigError
from treeshare.native import int8_kernels, structs, unused_reason

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

INT8 = "int8"
"""The name of the only quantisation."""

MAX_TRANSFORM = 64
"""Inputs that are mixed: the largest power of two that divides a layer's inputs, up to this number."""

_UNIT, _PANEL, _WORD = 64, 16, 4
"""Inputs are padded to a multiple of the first, outputs of the second; so many inputs are side by side."""

_ROWS_AT_ONCE = 4096
"""Rows of weights that are quantised together: their float32 copies are small beside a table's."""


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
            "quantization", got=f"{INT8} on {device}", expected="the CPU", remedy="take device cpu, or none"
        )
    if int8_kernels() is None:
        reason = unused_reason() or "TREESHARE_KERNELS=none, or this CPU runs none of them"
        raise ConfigError.of(
            "quantization", got=INT8, expected="compiled kernels", remedy=f"there are none: {reason}"
        )


def transform_width(num_inputs: int) -> int:
    """Inputs of a layer that are mixed together; a power of two."""
    return min(num_inputs & -num_inputs, MAX_TRANSFORM)


def code_numbers(num_inputs: int) -> int:
    """Numbers of float32 that a row of codes and its scale take; whole cache lines."""
    return _rounded_up(_rounded_up(num_inputs, _UNIT) + 4, _UNIT) // 4


def _rounded_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _kernels() -> Any:  # noqa: ANN401
    """Those of codes; there are some wherever a model is quantised."""
    return int8_kernels()


def buffer_of(rows: Tensor) -> structs.Buffer:
    """Rows of numbers, ``[T, width]`` float32 or bfloat16, as the kernels read and write them."""
    return structs.Buffer(rows.data_ptr(), rows.stride(0), rows.dtype == torch.float32)


def quantize_rows(linear: structs.Int8Linear, rows: Tensor) -> Tensor:
    """Codes and scales of ``rows``, ``[T, inputs]`` side by side: ``[T, code_numbers]``."""
    codes = torch.empty(len(rows), code_numbers(linear.num_inputs))
    _kernels().treeshare_quantize_rows(
        ctypes.byref(linear), ctypes.byref(buffer_of(rows)), ctypes.byref(buffer_of(codes)), len(rows)
    )
    return codes


class Int8Weights:
    """Weights of a linear layer, or an embedding's table.

    Args:
        num_outputs: Rows of the weights.
        num_inputs: Columns.
        transform: Inputs that are mixed together; 1: none are.
        bias: Of the outputs, or None; kept as float32.
        codes: Their memory ``[panels, words, 16, 4]`` int8.
        scales: ``[padded outputs]`` float32.
        sums: ``[padded outputs]`` int32: of an output's codes.

    Attributes:
        num_outputs, num_inputs, transform, codes, scales, sums: As given; without codes, memory that is not
            filled.
        bias: ``[num_outputs]`` float32, or None.
    """

    def __init__(
        self,
        num_outputs: int,
        num_inputs: int,
        *,
        transform: int,
        bias: Tensor | None = None,
        codes: Tensor | None = None,
        scales: Tensor | None = None,
        sums: Tensor | None = None,
    ) -> None:
        self.num_outputs, self.num_inputs, self.transform = num_outputs, num_inputs, transform
        padded = _rounded_up(num_outputs, _PANEL)
        words = _rounded_up(num_inputs, _UNIT) // _WORD
        shape = (padded // _PANEL, words, _PANEL, _WORD)
        self.codes = torch.empty(shape, dtype=torch.int8) if codes is None else codes
        self.scales = torch.empty(padded) if scales is None else scales
        self.sums = torch.empty(padded, dtype=torch.int32) if sums is None else sums
        self.bias = None if bias is None else bias.detach().float().clone()
        assert self.codes.shape == shape
        assert len(self.scales) == len(self.sums) == padded

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, bias: Tensor | None = None, transform: int | None = None) -> Int8Weights:
        """Quantise ``weight`` ``[outputs, inputs]``, of any float dtype."""
        width = transform_width(weight.shape[1]) if transform is None else transform
        weights = cls(*weight.shape, transform=width, bias=bias)
        weights.fill(weight)
        return weights

    @torch.no_grad()
    def fill(self, weight: Tensor) -> None:
        """Quantise other values of the same shape into the same memory; the bias stays."""
        linear = self.linear
        for first in range(0, self.num_outputs, _ROWS_AT_ONCE):
            rows = weight[first : first + _ROWS_AT_ONCE].float().contiguous()
            self._pack(linear, quantize_rows(linear, rows), first)

    def fill_codes(self, codes: Tensor, scales: Tensor) -> None:
        """Take ``codes`` ``[outputs, inputs]`` int8 and ``scales`` ``[outputs]`` as they are."""
        padded = _rounded_up(self.num_inputs, _UNIT)
        rows = torch.zeros(self.num_outputs, code_numbers(self.num_inputs))
        rows.view(torch.int8)[:, : self.num_inputs] = codes
        rows[:, padded // 4] = scales.float()
        self._pack(self.linear, rows, 0)

    @staticmethod
    def _pack(linear: structs.Int8Linear, rows: Tensor, first: int) -> None:
        """Rows of codes become outputs from ``first`` on."""
        _kernels().treeshare_pack_int8(ctypes.byref(linear), ctypes.byref(buffer_of(rows)), first, len(rows))

    @property
    def linear(self) -> structs.Int8Linear:
        """What the kernels read; valid while the memory stays where it is."""
        return structs.Int8Linear(
            self.codes.data_ptr(),
            self.scales.data_ptr(),
            self.sums.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            self.num_inputs,
            self.num_outputs,
            _rounded_up(self.num_inputs, _UNIT),
            self.transform,
        )

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Its memory by name, but for the bias, which is a weight of the model."""
        return {"codes": self.codes, "scales": self.scales, "sums": self.sums}

    def multiply(self, x: Tensor) -> Tensor:
        """``[T, outputs]`` in the dtype of ``x`` ``[T, inputs]``, which is float32 or bfloat16, side by side."""
        linear = self.linear
        codes = quantize_rows(linear, x)
        out = torch.empty(len(x), self.num_outputs, dtype=x.dtype)
        _kernels().treeshare_linear_int8(
            ctypes.byref(linear), ctypes.byref(buffer_of(codes)), ctypes.byref(buffer_of(out)), len(x)
        )
        return out

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows ``ids`` ``[T]`` of the weights, as near as codes are: ``[T, inputs]``.

        Raises:
            IndexError: If there is no such row.
        """
        ids = ids.to(torch.int64).contiguous()
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.num_outputs:
            raise IndexError("index out of range in self")  # as torch's embedding says it
        out = torch.empty(len(ids), self.num_inputs, dtype=dtype)
        _kernels().treeshare_lookup_int8(
            ctypes.byref(self.linear), ids.data_ptr(), ctypes.byref(buffer_of(out)), len(ids)
        )
        return out


def can_join(weights: Sequence[Int8Weights]) -> bool:
    """Whether layers with one input can be one: their panels are full, and their inputs mixed alike."""
    first = weights[0]
    return all(
        part.num_outputs % _PANEL == 0
        and (part.num_inputs, part.transform) == (first.num_inputs, first.transform)
        for part in weights
    )


def join(weights: Sequence[Int8Weights]) -> Int8Weights:
    """Weights of layers with one input as one layer's, side by side; the layers' own become views of them."""
    if len(weights) == 1:
        return weights[0]
    assert can_join(weights)
    bias = None
    if any(part.bias is not None for part in weights):
        biases = [torch.zeros(part.num_outputs) if part.bias is None else part.bias for part in weights]
        bias = torch.cat(biases)
    joined = Int8Weights(
        sum(part.num_outputs for part in weights),
        weights[0].num_inputs,
        transform=weights[0].transform,
        codes=torch.cat([part.codes for part in weights]),
        scales=torch.cat([part.scales for part in weights]),
        sums=torch.cat([part.sums for part in weights]),
    )
    joined.bias = bias
    first = 0
    for part in weights:
        last = first + part.num_outputs
        part.codes = joined.codes[first // _PANEL : last // _PANEL]
        part.scales, part.sums = joined.scales[first:last], joined.sums[first:last]
        if part.bias is not None and bias is not None:
            part.bias = bias[first:last]
        first = last
    return joined
