"""Which numbers of rows give a row the same bits in a model's matmuls: measured, not assumed.

The compiled kernel gives a row the same bits however many rows there are. A matmul library may sum in another
order when the number of rows changes; a completion would then depend on what runs beside it. Measured on two
AMX cores: oneDNN's bfloat16 ``linear`` 576 x 1536 falls into the classes {16, 32, 384, 448, 512},
{48 ... 192} and {256, 320}; MKL's float32 one into {16 ... 48, 256 ... 512} and {64 ... 192}.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from treeshare.errors import ShapeError
from treeshare.models.linear import uses_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

Widths = Sequence[int]
"""Ascending numbers of rows that give a row the same bits."""

_BASE_CANDIDATES = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512)

_USUAL_ROWS = (1, 8, 32, 128, 512)

_MAX_PROBE_WEIGHTS = 1 << 24
"""A larger layer is probed with its own weights: it has enough outputs to show a difference."""


def candidate_widths(max_rows: int) -> Widths:
    """Row counts to measure, ascending; the last is ``max_rows`` or more. Above 512 in steps of 256."""
    widths = [width for width in _BASE_CANDIDATES if width < max_rows]
    largest = next((width for width in _BASE_CANDIDATES if width >= max_rows), None)
    return (*widths, largest) if largest else (*widths, *range(768, max_rows + 256, 256))


def smallest_width(widths: Widths, num_rows: int) -> int:
    """The smallest of ``widths`` that holds ``num_rows``.

    Raises:
        ShapeError: If ``num_rows`` is larger than all of them.
    """
    place = bisect_left(widths, num_rows)
    if place == len(widths):
        raise ShapeError(f"packed rows: got {num_rows}, expected at most {widths[-1]}")
    return widths[place]


def choose_widths(classes: Sequence[Widths]) -> Widths:
    """The class that pads least over the usual numbers of rows; the larger one of two that pad alike.

    Of the classes only the widths that every model is measured with are looked at: the choice
    must not depend on a batch, or on how many rows the engine was made for.
    """
    return min(classes, key=lambda widths: (_padded_rows(widths), -widths[-1]))


def _padded_rows(widths: Widths) -> int:
    """Rows that are computed for ``_USUAL_ROWS``; widths above ``_BASE_CANDIDATES`` are left out."""
    known = [width for width in widths if width <= _BASE_CANDIDATES[-1]]
    if not known:
        return sys.maxsize
    total = 0
    for num_rows in _USUAL_ROWS:
        whole, rest = divmod(num_rows, known[-1])
        total += whole * known[-1] + (smallest_width(known, rest) if rest else 0)
    return total


@torch.inference_mode()
def width_classes(modules: Iterable[nn.Module], candidates: Widths, dtype: torch.dtype) -> list[Widths]:
    """Sort ``candidates`` into classes whose members give a row the same bits in every linear layer.

    Each distinct shape is run once per candidate, on rows whose products nearly cancel, so that another order
    of summation shows even after rounding to bfloat16. This takes a few milliseconds a shape.

    Args:
        modules: Modules to measure; those that are not linear layers are skipped. If the compiled kernel
            computes all, every number of rows is in one class.
        candidates: Ascending row counts.
        dtype: Of weights and activations.
    """
    measured = [module for module in modules if is_linear(module) and not uses_kernel(module)]
    classes: list[Widths] = [candidates if measured else range(1, candidates[-1] + 1)]
    seen = set()
    for module in measured:
        shape = _kernel_shape(module)
        if shape in seen:
            continue
        seen.add(shape)
        rows, run = _probe(module, candidates[-1], dtype)
        outputs = {width: run(rows[:width].clone()) for width in candidates}
        classes = [part for widths in classes for part in _split(widths, outputs)]
    return classes


def _split(widths: Widths, outputs: dict[int, Tensor]) -> list[Widths]:
    """Split a class into those whose rows have the same bits, by the rows that two widths have in common."""
    parts: list[list[int]] = []
    for width in widths:
        for part in parts:
            if torch.equal(outputs[part[-1]], outputs[width][: part[-1]]):
                part.append(width)
                break
        else:
            parts.append([width])
    return [tuple(part) for part in parts]


def is_linear(module: nn.Module) -> bool:
    """Whether ``module`` is a matmul with weights."""
    return _kernel_shape(module) is not None


def _kernel_shape(module: nn.Module) -> tuple[object, ...] | None:
    """What a library chooses its kernel by: kind, widths, and whether there is a bias; None if not linear."""
    if isinstance(module, nn.Linear):
        return ("linear", *module.weight.shape, module.bias is not None)
    if isinstance(module, Conv1D):
        return ("conv1d", *module.weight.shape, True)
    return None


def _probe(module: nn.Module, num_rows: int, dtype: torch.dtype) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rows and a layer of the shape of ``module`` whose large products cancel: order shows in the sums."""
    assert isinstance(module, (nn.Linear, Conv1D))
    weight, bias = module.weight, module.bias
    is_conv = isinstance(module, Conv1D)
    draws = torch.Generator().manual_seed(0)
    num_inputs, num_outputs = tuple(weight.shape) if is_conv else tuple(weight.shape)[::-1]

    def random(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype).uniform_(-1, 1, generator=draws).to(weight.device)

    third = num_inputs // 3
    rows = random(num_rows, num_inputs)
    if weight.numel() <= _MAX_PROBE_WEIGHTS:
        rows[:, :third] *= 4096
        rows[:, third : 2 * third] = -rows[:, :third]
        probe = random(num_outputs, num_inputs)
        probe[:, third : 2 * third] = probe[:, :third]
        probe = probe.t() if is_conv else probe
        if weight.is_contiguous():  # as the weights lie: a library may sum others in another order
            probe = probe.contiguous()
        weight = nn.Parameter(probe, requires_grad=False)
    if is_conv:
        return rows, lambda x: torch.addmm(bias, x, weight)
    return rows, lambda x: nn.functional.linear(x, weight, bias)
