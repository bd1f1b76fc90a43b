"""Runs an unchanged transformers model on one packed row of tokens, with treeshare's attention inside.

The step's state reaches attention as the keyword argument ``treeshare_step`` of the model's ``forward``.

A matmul library may sum in another order when the number of rows changes, and a completion would then depend
on its company. So rows are padded to widths that were measured, when the model was loaded, to give every row
the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from treeshare.errors import UnsupportedModelError
from treeshare.models.widths import invariant_widths, smallest_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from treeshare.attention import AttentionBackend, BatchLayout

ATTENTION_NAME = "treeshare"

_HARMLESS = frozenset(
    {"is_causal", "position_ids", "use_cache", "cache_position", "output_attentions", "sliding_window"}
)
"""Keywords that ask for nothing more; a window shorter than the model's positions is refused at load time."""


class StepAttention(Protocol):
    """What attention does during one forward pass."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention output ``[T, Q, D]`` for ``query`` ``[T, Q, D]``, ``key`` and ``value`` ``[T, H, D]``."""


@dataclass(frozen=True, slots=True)
class TreeStep:
    """Tree attention by a backend, as the layout says."""

    backend: AttentionBackend
    layout: BatchLayout

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See ``StepAttention``."""
        return self.backend.attend(query, key, value, layer=layer, layout=self.layout, scale=scale).out


@dataclass(frozen=True, slots=True)
class NoAttention:
    """Skips attention: the ceiling in benchmarks."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the query."""
        return query


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    treeshare_step: StepAttention | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """What transformers' model code calls: ``query`` ``[1, Q, T, D]``, ``key`` ``[1, H, T, D]``."""
    name = type(module).__name__
    if treeshare_step is None:
        raise UnsupportedModelError(f"{name}: this model code does not pass keywords on to its attention")
    features = sorted(key for key, value in kwargs.items() if value is not None and key not in _HARMLESS)
    features += ["an attention mask"] * (attention_mask is not None) + ["dropout"] * (dropout != 0)
    if value.shape[-1] != query.shape[-1]:
        features.append("values of another width than keys")
    if features:
        raise UnsupportedModelError(f"{name}: attention needs {', '.join(features)}: not implemented")
    out = treeshare_step.attend(
        module.layer_idx,  # type: ignore[arg-type]
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        query.shape[-1] ** -0.5 if scaling is None else scaling,
    )
    return out.unsqueeze(0), None


def _no_mask(*_: object, **__: object) -> None:
    """Attention plans its own masks; transformers would build an N x N one."""


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _no_mask)


class ModelAdapter:
    """A causal language model bound to tree attention.

    Args:
        model: A transformers causal LM in evaluation mode; its attention implementation is set to
            ``treeshare``.
        max_step_tokens: Most packed rows of one forward pass.
        max_logits_rows: Most rows that go through ``lm_head`` in one forward pass.

    Attributes:
        body_widths: Numbers of packed rows that give a row the same bits, ascending; the last is the most.
        head_widths: The same for ``lm_head``.
    """

    def __init__(self, model: Any, *, max_step_tokens: int, max_logits_rows: int) -> None:  # noqa: ANN401
        self.model = model
        model.set_attn_implementation(ATTENTION_NAME)
        head = model.get_output_embeddings()
        self.body_widths = invariant_widths(
            [module for module in model.modules() if module is not head], max_step_tokens, model.dtype
        )
        self.head_widths = invariant_widths([head], max_logits_rows, model.dtype)

    @torch.inference_mode()
    def forward(
        self, token_ids: Sequence[int], positions: Tensor, step: StepAttention, logits_rows: Sequence[int]
    ) -> Tensor:
        """Run one step.

        Args:
            token_ids: ``[T]`` packed tokens.
            positions: ``[T]`` int64 positions in their sequences.
            step: Attention of this step.
            logits_rows: Rows whose next-token logits are wanted.

        Returns:
            ``[len(logits_rows), vocab_size]`` logits in the model's dtype.
        """
        num_rows, num_logits = len(token_ids), len(logits_rows)
        width = smallest_width(self.body_widths, num_rows)
        packed = torch.zeros(2, 1, width, dtype=torch.int64)
        packed[0, 0, :num_rows] = torch.as_tensor(token_ids)
        packed[1, 0, :num_rows] = positions
        wanted = torch.zeros(smallest_width(self.head_widths, num_logits), dtype=torch.int64)
        wanted[:num_logits] = torch.as_tensor(logits_rows, dtype=torch.int64)
        output = self.model(
            input_ids=packed[0],
            position_ids=packed[1],
            use_cache=False,
            logits_to_keep=wanted,
            treeshare_step=step,
        )
        logits: Tensor = output.logits[0, :num_logits]
        return logits
