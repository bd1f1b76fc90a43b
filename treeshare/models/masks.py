"""The shape of a mask that a model's code asks for, found by asking its function about positions.

Windows and chunks of some models are in the mask alone: no keyword of attention, no field of a known name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from treeshare.attention import AttentionSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

_NEAR, _DRAWN, _MULTIPLES = 8, 32, 5
"""Positions at which a mask is compared: the first, drawn ones, those around a length's multiples."""


class OtherMask(Exception):
    """A mask that is neither causal, nor a window, nor a chunk; the text says what it is."""


def mask_spec(function: Callable[..., Tensor], longest: int) -> AttentionSpec:
    """The window or chunk of a mask function, as transformers makes them.

    Args:
        function: Of batch, head, row and key, tensors that broadcast; tells whether the row sees the key.
        longest: Positions from this one on do not matter.

    Returns:
        A spec with scale 1.

    Raises:
        OtherMask: If rows see anything else than the keys before them, from a window's or chunk's first on.
    """

    def sees(rows: Tensor, keys: Tensor) -> Tensor:
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64, device=rows.device)
        try:
            seen = function(zero, zero, rows.view(1, 1, -1, 1), keys.view(1, 1, 1, -1))
            return seen.expand(1, 1, len(rows), len(keys))[0, 0]
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise OtherMask("a mask that depends on more than positions") from error

    def row_sees(row: int, key: int) -> bool:
        return bool(sees(torch.tensor([row]), torch.tensor([key])))

    if not row_sees(0, 0) or (longest > 1 and row_sees(0, 1)):
        raise OtherMask("bidirectional attention")
    spec = AttentionSpec(scale=1.0)
    if not row_sees(longest - 1, 0):
        last, blind = 0, longest - 1  # rows that see the first key, and that do not
        while blind - last > 1:
            middle = (last + blind) // 2
            last, blind = (middle, blind) if row_sees(middle, 0) else (last, middle)
        is_window = blind == 1 or row_sees(blind, 1)
        spec = AttentionSpec(scale=1.0, window=blind) if is_window else AttentionSpec(scale=1.0, chunk=blind)
    points = _points(spec.window or spec.chunk or 1, longest)
    expected = (points <= points[:, None]) & (points >= spec.first_seen(points)[:, None])
    if not torch.equal(sees(points, points), expected):
        raise OtherMask("a mask of its own")
    return spec


def _points(length: int, longest: int) -> Tensor:
    """Positions to compare at, ascending."""
    draws = torch.Generator().manual_seed(0)
    drawn = torch.randint(longest, (_DRAWN,), generator=draws)
    around = torch.arange(-1, 2)
    multiples = (length * torch.arange(_MULTIPLES)[:, None] + around).flatten()
    shifted = (drawn[:, None] - length + around).flatten()
    ends = torch.tensor([longest - 1, longest - length, longest - length - 1])
    points = torch.cat([torch.arange(_NEAR), drawn, multiples, shifted, ends])
    return torch.tensor(sorted(set(points[(points >= 0) & (points < longest)].tolist())))
