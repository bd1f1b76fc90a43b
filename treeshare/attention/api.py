"""The contract of the attention backends; they never import one another."""

from abc import ABC, abstractmethod

from torch import Tensor

from treeshare.attention.layout import BatchLayout
from treeshare.attention.state import AttentionState


class AttentionBackend(ABC):
    """Tree attention for the packed rows of a step.

    The contract, held by ``tests/attention/test_backends.py`` for every backend: within the precision budget
    of the ``reference`` backend in float64, whatever unused KV memory holds.

    Attributes:
        name: As ``make_backend`` knows it.
    """

    name: str

    @abstractmethod
    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, layer: int, layout: BatchLayout, scale: float
    ) -> AttentionState:
        """Store the step's keys and values, then attend every row to its whole path.

        Args:
            query: ``[num_packed, num_q_heads, head_dim]``; rows from ``layout.num_rows`` on are padding.
            key: ``[num_packed, num_kv_heads, head_dim]``, same dtype; query head ``h`` uses KV head
                ``h // (num_q_heads // num_kv_heads)``.
            value: Same shape as ``key``.
            layer: Layer of the store to extend and read.
            layout: The step's plan.
            scale: Factor of the scores.

        Returns:
            ``out`` ``[num_packed, num_q_heads, head_dim]`` in the dtype of ``query`` and ``lse`` float32;
            padding rows are ``(0, -inf)``.
        """
