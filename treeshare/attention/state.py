"""Partial attention and its merge.

Shapes: ``R`` rows, ``Q`` query heads, ``D`` head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from treeshare.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class AttentionState:
    """Attention of rows over some set of keys.

    Attributes:
        out: ``[R, Q, D]``: normalised output; zero where there was no key.
        lse: ``[R, Q]``: natural log of the sum of exponentials of the *scaled* scores; ``-inf`` where there
            was no key.
    """

    out: Tensor
    lse: Tensor

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> AttentionState:
        """Attention over no keys, ``out`` of ``shape`` ``[R, Q, D]``: the merge's identity."""
        return cls(torch.zeros(*shape, dtype=dtype), torch.full(shape[:2], -torch.inf, dtype=dtype))


def merge_states(a: AttentionState, b: AttentionState) -> AttentionState:
    """Merge attention over two disjoint key sets into attention over their union.

    Associative and commutative; ``(0, -inf)``, attention over nothing, is its identity.

    Args:
        a: ``out`` ``[num_rows, num_q_heads, head_dim]``, ``lse`` ``[num_rows, num_q_heads]``, natural log.
        b: Same shapes, dtypes and device.

    Raises:
        ShapeError: If shapes, dtypes or devices differ; the message gives both.

    Source: Hydragen, arXiv 2402.05099, section 3. Held by ``tests/attention/test_state.py``.
    """
    for name, left, right in (("out", a.out, b.out), ("lse", a.lse, b.lse)):
        if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
            raise ShapeError(
                f"merge_states: {name} differs: {tuple(left.shape)} {left.dtype} {left.device} and "
                f"{tuple(right.shape)} {right.dtype} {right.device}"
            )
    high = torch.maximum(a.lse, b.lse)
    shift = torch.where(high == -torch.inf, 0.0, high)
    weight_a, weight_b = (a.lse - shift).exp(), (b.lse - shift).exp()
    total = weight_a + weight_b
    share = torch.where(total == 0, 1.0, total)
    out = a.out * (weight_a / share).unsqueeze(-1) + b.out * (weight_b / share).unsqueeze(-1)
    return AttentionState(out, shift + total.log())
