"""Attention of one forward pass, which a model's code reaches whatever it passes on to its layers."""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from treeshare.models.linear import SMALL_OPERATIONS
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from treeshare.attention import AttentionBackend, AttentionSpec, BatchLayout


class StepAttention(Protocol):
    """Computes attention in one forward pass."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """Attention of the pass's next call, calls being in the order in which the model makes them.

        Args:
            query: ``[T, Q, D]``.
            key: ``[T, H, D]``.
            value: ``[T, H, V]``.
            spec: What the model's code asks for; what is known of the call beside that comes on top.
            sinks: ``[Q]`` scores without a value.

        Returns:
            ``[T, Q, V]`` in memory of its own: that of the query is used again by the layer.
        """


_STEP: ContextVar[StepAttention | None] = ContextVar("treeshare_step", default=None)


@contextlib.contextmanager
def running(step: StepAttention) -> Iterator[None]:
    """Let ``step`` compute the attention of what runs inside."""
    token = _STEP.set(step)
    try:
        yield
    finally:
        _STEP.reset(token)


def running_step() -> StepAttention | None:
    """The attention of the forward pass that runs, if one does."""
    return _STEP.get()


def current_step() -> StepAttention:
    """The attention of the forward pass that runs.

    Raises:
        RuntimeError: If none runs: a model bound to tree attention was called by somebody else.
    """
    step = running_step()
    if step is None:
        raise RuntimeError("this model is bound to tree attention, so it can only run in an engine's steps")
    return step


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """A call of attention in a forward pass.

    Attributes:
        layer: Layer of the KV that it reads.
        spec: What it computes.
        num_heads: Query heads.
        writes: Whether that KV is its own; else an earlier call has stored it.
    """

    layer: int
    spec: AttentionSpec
    num_heads: int
    writes: bool = True


@dataclass(slots=True)
class TreeStep:
    """Tree attention by a backend, over a step's layout.

    Attributes:
        backend: Computes it.
        layout: The plan of the step.
        calls: The model's calls of attention, in their order.
        stopwatch: Is told what lies between them.
    """

    backend: AttentionBackend
    layout: BatchLayout
    calls: Sequence[AttentionCall]
    stopwatch: Stopwatch = OFF
    _num_made: int = field(default=0, init=False)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """See ``StepAttention``."""
        del spec  # the call's own says as much
        self.stopwatch.lap(SMALL_OPERATIONS)
        call = self.calls[self._num_made % len(self.calls)]
        self._num_made += 1
        state = self.backend.attend(
            query,
            key if call.writes else None,
            value if call.writes else None,
            layer=call.layer,
            layout=self.layout,
            spec=call.spec,
            sinks=None if sinks is None else sinks.float(),
        )
        return state.out.to(query.dtype)


@dataclass(frozen=True, slots=True)
class NoAttention:
    """Skips attention: an upper bound for benchmarks, and where only what lies beside it matters."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec, sinks: Tensor | None = None
    ) -> Tensor:
        """A copy of the query; of another width where values have another."""
        del key, spec, sinks
        width = value.shape[2]
        return query.repeat(1, 1, -(-width // query.shape[2]))[..., :width].contiguous()
