"""What attention does during one forward pass: the step that reaches it through the model's keywords."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from treeshare.models.linear import SMALL_OPERATIONS
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from torch import Tensor

    from treeshare.attention import AttentionBackend, AttentionSpec, BatchLayout


class StepAttention(Protocol):
    """Attention of one forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """Attention output ``[T, Q, D]`` for ``query`` ``[T, Q, D]``, ``key`` and ``value`` ``[T, H, D]``."""


@dataclass(frozen=True, slots=True)
class TreeStep:
    """Tree attention by a backend, as the layout says."""

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
    """Skips attention: the ceiling in benchmarks."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
        """Return the query."""
        return query
