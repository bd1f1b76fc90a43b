"""The contract of the attention backends; they never import one another."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from treeshare.attention.layout import BatchLayout
from treeshare.attention.state import AttentionState


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSpec:
    """What one call of attention computes beyond the plan of a step.

    A feature is a field here, a name in ``features``, and code in each backend that lists the name.

    Attributes:
        scale: Factor of the scores.
        window: Number of positions that a row sees, its own and those just before it; None for all.
        chunk: A row sees its own position and those before it from the last multiple of ``chunk`` on; None
            for all.
        soft_cap: Scores ``s``, scaled, become ``soft_cap * tanh(s / soft_cap)``; None leaves them.
        has_sinks: Every query head has a learned score to which no value belongs.
    """

    scale: float
    window: int | None = None
    chunk: int | None = None
    soft_cap: float | None = None
    has_sinks: bool = False

    @property
    def reach(self) -> int | None:
        """Positions that a row sees at most, its own included; None: all."""
        return min((bound for bound in (self.window, self.chunk) if bound is not None), default=None)

    def first_seen(self, positions: Tensor) -> Tensor:
        """The position of the first key that a row sees; ``positions`` int64, of the rows."""
        first = torch.zeros_like(positions)
        if self.window is not None:
            first = torch.maximum(first, positions - (self.window - 1))
        if self.chunk is not None:
            first = torch.maximum(first, positions - positions % self.chunk)
        return first

    @property
    def features(self) -> frozenset[str]:
        """What a backend must implement beyond plain causal attention, by the names that messages use."""
        needed = {
            "sliding-window attention": self.window is not None,
            "chunked attention": self.chunk is not None,
            "attention soft-capping": self.soft_cap is not None,
            "attention sinks": self.has_sinks,
        }
        return frozenset(name for name, is_needed in needed.items() if is_needed)


ALL_FEATURES = AttentionSpec(scale=1.0, window=1, chunk=1, soft_cap=1.0, has_sinks=True).features
"""What a layer can ask for."""


class AttentionBackend(ABC):
    """Tree attention for the packed rows of a step.

    The contract, held by ``tests/attention/test_backends.py`` for every backend: results are within the
    precision budget of the ``reference`` backend in float64, whatever unused KV memory holds.

    Attributes:
        name: The name by which ``make_backend`` makes it.
        features: Those of ``AttentionSpec.features`` that it implements.
        keeps_bits: Whether a row's bits depend on its own keys alone: not on where the tree is cut, nor on
            what other rows there are.
    """

    name: str
    features: frozenset[str] = frozenset()
    keeps_bits: bool = False

    def supports(self, spec: AttentionSpec) -> bool:
        """Whether it implements every feature of a layer's ``spec``."""
        return spec.features <= self.features

    def end_step(self) -> None:
        """Forget what was planned for a step's layout: a plan keeps the KV that it reads in memory."""
        return

    @abstractmethod
    def attend(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        *,
        layer: int,
        layout: BatchLayout,
        spec: AttentionSpec,
        sinks: Tensor | None = None,
    ) -> AttentionState:
        """Store the step's keys and values in ``layout.store``, then attend every row to what it sees.

        Args:
            query: ``[num_packed, num_q_heads, key_width]``; rows from ``layout.num_rows`` on are padding.
            key: ``[num_packed, num_kv_heads, key_width]``, same dtype; query head ``h`` uses KV head
                ``h // (num_q_heads // num_kv_heads)``. None: an earlier call has stored the layer's.
            value: ``[num_packed, num_kv_heads, value_width]``; None with ``key``.
            layer: Layer of the store to extend and read.
            layout: The step's plan.
            spec: What the layer computes; ``supports`` holds for it.
            sinks: ``[num_q_heads]`` float32 natural-log scores, added once to each row's sum of exponentials;
                given where ``spec.has_sinks``.

        Returns:
            ``out`` ``[num_packed, num_q_heads, value_width]`` in the dtype of ``query`` and ``lse`` float32,
            the sink included; padding rows are ``(0, -inf)``.
        """
