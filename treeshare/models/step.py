"""Attention of one forward pass: an object that reaches it as a keyword of the model's forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from treeshare.models.linear import SMALL_OPERATIONS
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from treeshare.attention import AttentionBackend, AttentionSpec, BatchLayout


class StepAttention(Protocol):
    """Computes attention in one forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """Attention output ``[T, Q, D]`` for ``query`` ``[T, Q, D]``, ``key`` and ``value`` ``[T, H, D]``.

        It lies in memory of its own: that of the query is used again by the layer.
        """


@dataclass(frozen=True, slots=True)
class TreeStep:
    """Tree attention by a backend, over a step's layout."""

    backend: AttentionBackend
    layout: BatchLayout
    stopwatch: Stopwatch = OFF

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """See ``StepAttention``."""
        self.stopwatch.lap(SMALL_OPERATIONS)
        state = self.backend.attend(query, key, value, layer=layer, layout=self.layout, spec=spec)
        return state.out.to(query.dtype)


@dataclass(frozen=True, slots=True)
class NoAttention:
    """Skips attention: an upper bound for benchmarks."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """A copy of the query."""
        return query.clone()
