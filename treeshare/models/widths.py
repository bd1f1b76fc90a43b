"""Which numbers of rows give every row the same bits in a model's matmuls: measured, not assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from treeshare.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CANDIDATES = (16, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448)


def smallest_width(widths: Sequence[int], num_rows: int) -> int:
    """The smallest of ascending ``widths`` that holds ``num_rows``.

    Raises:
        ShapeError: If none does.
    """
    for width in widths:
        if width >= num_rows:
            return width
    raise ShapeError(f"packed rows: got {num_rows}, expected at most {widths[-1]}")


@torch.inference_mode()
def invariant_widths(modules: Iterable[nn.Module], max_width: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Row counts at which every linear layer gives a row the same bits as at ``max_width``.

    Each distinct shape is run once per candidate on random rows. Costs a few milliseconds a shape.

    Args:
        modules: Modules to look at; those that are not linear layers are passed over.
        max_width: The most rows; rounded up to a multiple of 16, and always in the result.
        dtype: Of the activations.

    Returns:
        Ascending widths.
    """
    max_width = -(-max_width // 16) * 16
    widths = [width for width in CANDIDATES if width < max_width]
    seen = set()
    for module in modules:
        shape = _in_out(module)
        if shape is None or shape in seen:
            continue
        seen.add(shape)
        rows = torch.randn(max_width, shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
        expected = module(rows)
        widths = [width for width in widths if torch.equal(module(rows[:width].clone()), expected[:width])]
    return (*widths, max_width)


def _in_out(module: nn.Module) -> tuple[Any, ...] | None:
    """What decides a linear layer's kernel: its kind, input and output width, and whether it has a bias."""
    if isinstance(module, nn.Linear):
        return ("linear", module.in_features, module.out_features, module.bias is not None)
    if isinstance(module, Conv1D):
        return ("conv1d", module.weight.shape[0], module.weight.shape[1], True)
    return None
