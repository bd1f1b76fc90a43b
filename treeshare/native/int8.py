"""Linear layers and tables in codes of 8 bits: their memory, and calls of their kernels.

What codes stand for is said in ``native/int8.h``, their layout in ``native/structs.h``. All results are the
same bytes at every level.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch

from treeshare.native import structs
from treeshare.native.library import int8_kernels

PANEL = 16
"""Outputs whose codes lie side by side."""

_UNIT, _WORD = 64, 4
MAX_INPUTS = (1 << 31) // (127 * 127) // _UNIT * _UNIT
"""So many products of codes fit into a sum of 32 bits."""

_ROWS_TOGETHER = 4096
"""Rows of weights that are quantised before they are packed, a multiple of ``PANEL``: their float32 copies
are small beside a table's."""


def padded_inputs(num_inputs: int) -> int:
    """Inputs with those that are added to fill up units of 64."""
    return -(-num_inputs // _UNIT) * _UNIT


@dataclass(frozen=True, kw_only=True)
class Int8Format:
    """How rows of ``num_inputs`` numbers become codes."""

    num_inputs: int
    """At most ``MAX_INPUTS``."""
    group: int | None = None
    """Inputs that share a scale: a multiple of 64; None: all of them."""
    transform: int = 1
    """Neighbouring inputs that are mixed: a power of two that divides ``num_inputs``; 1: none are."""

    def __post_init__(self) -> None:
        assert 0 < self.num_inputs <= MAX_INPUTS
        assert self.group is None or (self.group > 0 and self.group % _UNIT == 0)
        assert self.transform > 0
        assert self.transform & (self.transform - 1) == 0
        assert self.num_inputs % self.transform == 0

    @property
    def padded(self) -> int:
        """Inputs, filled up with zeros."""
        return padded_inputs(self.num_inputs)

    @property
    def num_groups(self) -> int:
        """Scales of a row."""
        return 1 if self.group is None else -(-self.padded // self.group)

    @property
    def row_floats(self) -> int:
        """Memory of a row of codes with its scales, in numbers of four bytes: whole units of 64 bytes."""
        return padded_inputs(self.padded + 4 * self.num_groups) // 4

    def struct(self, num_outputs: int = 0, **addresses: int | None) -> structs.Int8Linear:
        """The kernels' struct, with ``codes``, ``scales``, ``sums`` and ``bias`` where they are given."""
        group = self.padded if self.group is None else self.group
        return structs.Int8Linear(
            **addresses,
            num_inputs=self.num_inputs,
            num_outputs=num_outputs,
            group=group,
            transform=self.transform,
        )

    def rows(self, num_rows: int) -> torch.Tensor:
        """Memory for rows of codes: float32 ``[num_rows, row_floats]``, whatever is in it."""
        return torch.empty(num_rows, self.row_floats)

    def codes_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The codes in ``rows``: a view, int8 ``[num_rows, padded]``."""
        return rows.view(torch.int8)[:, : self.padded]

    def scales_of(self, rows: torch.Tensor) -> torch.Tensor:
        """The scales in ``rows``: a view, float32 ``[num_rows, num_groups]``."""
        return rows[:, self.padded // 4 :][:, : self.num_groups]

    def quantize(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of codes, in new memory: x float32 or bfloat16 ``[num_rows, num_inputs]``."""
        assert x.shape[1] == self.num_inputs
        rows = self.rows(len(x))
        _kernels().treeshare_quantize_rows(
            ctypes.byref(self.struct()), ctypes.byref(buffer(x)), ctypes.byref(buffer(rows)), len(x)
        )
        return rows


def buffer(x: torch.Tensor) -> structs.Buffer:
    """Rows of numbers for the kernels: float32 or bfloat16, each row's side by side."""
    assert x.dtype in (torch.float32, torch.bfloat16)
    assert x.dim() == 2
    assert x.shape[1] <= 1 or x.stride(1) == 1
    return structs.Buffer(x.data_ptr(), x.stride(0), x.dtype == torch.float32)


@dataclass(frozen=True, kw_only=True)
class PackedWeights:
    """A linear layer's weights, or an embedding's table, as the kernels of every level read them."""

    format: Int8Format
    num_outputs: int
    codes: torch.Tensor
    """int8 ``[panels, words, 16, 4]``."""
    scales: torch.Tensor
    """float32 ``[groups, padded outputs]``."""
    sums: torch.Tensor
    """int32 ``[groups, padded outputs]``: of a group's codes."""
    bias: torch.Tensor | None = None
    """float32 ``[num_outputs]``."""

    @classmethod
    def empty(cls, format: Int8Format, num_outputs: int, bias: torch.Tensor | None = None) -> PackedWeights:
        """Memory that ``pack`` fills."""
        panels = -(-num_outputs // PANEL)
        outputs = panels * PANEL
        return cls(
            format=format,
            num_outputs=num_outputs,
            codes=torch.empty(panels, format.padded // _WORD, PANEL, _WORD, dtype=torch.int8),
            scales=torch.empty(format.num_groups, outputs),
            sums=torch.empty(format.num_groups, outputs, dtype=torch.int32),
            bias=None if bias is None else bias.detach().float().contiguous(),
        )

    @classmethod
    def of(cls, weight: torch.Tensor, format: Int8Format, bias: torch.Tensor | None = None) -> PackedWeights:
        """Quantised weights ``[num_outputs, num_inputs]`` of any float dtype."""
        packed = cls.empty(format, len(weight), bias)
        packed.fill(weight)
        return packed

    def fill(self, weight: torch.Tensor) -> None:
        """Quantise ``weight``, as for ``of``, into this memory; the bias stays."""
        for first in range(0, len(weight), _ROWS_TOGETHER):
            part = weight[first : first + _ROWS_TOGETHER].detach().float().contiguous()
            self.pack(self.format.quantize(part), first)

    def struct(self) -> structs.Int8Linear:
        """The kernels' struct: it lives no longer than the tensors here."""
        return self.format.struct(
            self.num_outputs,
            codes=self.codes.data_ptr(),
            scales=self.scales.data_ptr(),
            sums=self.sums.data_ptr(),
            bias=None if self.bias is None else self.bias.data_ptr(),
        )

    def pack(self, rows: torch.Tensor, first: int = 0) -> None:
        """Rows of codes, with scales, become the outputs from ``first`` on."""
        assert first + len(rows) <= self.num_outputs
        _kernels().treeshare_pack_int8(
            ctypes.byref(self.struct()), ctypes.byref(buffer(rows)), first, len(rows)
        )

    def multiply(self, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``out = rows weight^T + bias``: rows of codes; float32 or bfloat16 ``[num_rows, num_outputs]``."""
        assert out.shape == (len(rows), self.num_outputs)
        _kernels().treeshare_linear_int8(
            ctypes.byref(self.struct()), ctypes.byref(buffer(rows)), ctypes.byref(buffer(out)), len(rows)
        )
        return out

    def lookup(self, ids: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``out`` = the weights of outputs ``ids``, int64, as numbers: float32 or bfloat16."""
        assert ids.dtype == torch.int64
        assert ids.is_contiguous()
        assert out.shape == (len(ids), self.format.num_inputs)
        _kernels().treeshare_lookup_int8(
            ctypes.byref(self.struct()), ids.data_ptr(), ctypes.byref(buffer(out)), len(ids)
        )
        return out


def _kernels() -> Any:  # noqa: ANN401
    kernels = int8_kernels()
    assert kernels is not None, "int8 needs compiled kernels"
    return kernels
