"""Runs an unchanged transformers model on one packed row of tokens, with treeshare's attention inside.

A matmul library may sum in another order when the number of rows changes, and a completion would then depend
on what runs beside it. So rows are padded to widths for which it was measured, when the model was loaded,
that every row has the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from treeshare.attention import AttentionSpec
from treeshare.config import MAX_PREFILL_ROWS
from treeshare.errors import UnsupportedModelError
from treeshare.models.calls import CallRecorder
from treeshare.models.linear import LINEAR, SMALL_OPERATIONS
from treeshare.models.masks import OtherMask
from treeshare.models.step import current_step, running, running_step
from treeshare.models.widths import (
    candidate_widths,
    choose_widths,
    is_linear,
    smallest_width,
    width_classes,
)
from treeshare.stopwatch import OFF, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from treeshare.models.fusion import FusedLayer
    from treeshare.models.step import StepAttention

ATTENTION_NAME = "treeshare"

_IGNORED = frozenset(
    {
        "position_ids",
        "use_cache",
        "cache_position",
        "output_attentions",
        "output_router_logits",
        "logits_to_keep",
    }
)
"""Keywords of a layer's attention that ask nothing of attention."""

_SPEC_KEYWORDS = frozenset({"sliding_window", "softcap", "s_aux"})
"""Keywords that are fields of ``AttentionSpec``."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # noqa: ANN401
) -> tuple[Tensor, None]:
    """What transformers' model code calls: ``query`` ``[1, Q, T, D]``, ``key`` ``[1, H, T, D]``."""
    name = type(module).__name__
    is_causal = kwargs.pop("is_causal", None)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    unknown = {key for key, value in kwargs.items() if value is not None} - _IGNORED - _SPEC_KEYWORDS
    features = sorted(unknown)
    features += ["bidirectional attention"] * (is_causal is False and query.shape[2] > 1)
    features += ["dropout"] * (dropout != 0)
    sinks = kwargs.get("s_aux")
    step = current_step()
    spec = AttentionSpec(
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=kwargs.get("sliding_window") or None,
        soft_cap=kwargs.get("softcap"),
        has_sinks=sinks is not None,
    )
    if attention_mask is not None:
        try:
            if not isinstance(step, CallRecorder):
                raise OtherMask("a mask of its own")
            spec = step.with_mask(attention_mask, spec)
        except OtherMask as mask:
            features.append(str(mask))
    if features:
        raise UnsupportedModelError(f"{name}: attention needs {', '.join(features)}: not implemented")
    query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))
    out = step.attend(query, key, value, spec, sinks)
    return out.unsqueeze(0), None


def _mask(*, mask_function: Any, q_length: int, kv_length: int, **_: object) -> Tensor | None:  # noqa: ANN401
    """What transformers' model code gets for a mask: none, unless its calls are recorded.

    The backends mask by the layout and the calls' specs; transformers would build an N x N mask.
    """
    step = running_step()
    return step.new_mask(mask_function, q_length, kv_length) if isinstance(step, CallRecorder) else None


AttentionInterface.register(ATTENTION_NAME, attend)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)


class ModelAdapter:
    """A causal language model bound to tree attention.

    Args:
        model: A transformers causal LM in evaluation mode; its attention implementation is set to
            ``treeshare``.
        fused: Its fused layers.
        max_rows: Rows that a forward pass should be able to have.
        stopwatch: Is told how long the linear layers took and what lies between them.

    Attributes:
        widths: Numbers of packed rows that a call is padded to; a row has the same bits with all. They
            depend on the model and the machine, never on a batch. The largest may be below ``max_rows``.
        head_widths: The same for the rows that go through ``lm_head``.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        fused: Sequence[FusedLayer] = (),
        *,
        max_rows: int,
        stopwatch: Stopwatch = OFF,
    ) -> None:
        self.model = model
        assert model.config._attn_implementation == ATTENTION_NAME, "bound when it was loaded"
        head = model.get_output_embeddings()
        body = [module for module in model.modules() if module is not head]
        candidates = candidate_widths(max(max_rows, MAX_PREFILL_ROWS))
        self.widths = choose_widths(width_classes(body, candidates, model.dtype))
        self.head_widths = choose_widths(width_classes([head], candidates, model.dtype))
        self._stopwatch = stopwatch
        if stopwatch.enabled:
            for module in filter(is_linear, body):
                _time(module, LINEAR, stopwatch)
            _time(head, "lm_head", stopwatch)
            for layer in fused:
                layer.stopwatch = stopwatch

    @torch.inference_mode()
    def forward(
        self,
        token_ids: Sequence[int] | NDArray[np.int64],
        positions: Tensor,
        step: StepAttention,
        logits_rows: Sequence[int],
    ) -> Tensor:
        """Run the model on one packed row.

        Args:
            token_ids: ``[T]`` packed tokens.
            positions: ``[T]`` int64 positions in their sequences.
            step: Attention of this call.
            logits_rows: Rows whose next-token logits are wanted.

        Returns:
            ``[len(logits_rows), vocab_size]`` logits in the model's dtype.
        """
        num_rows, num_logits = len(token_ids), len(logits_rows)
        packed = torch.zeros(2, 1, smallest_width(self.widths, num_rows), dtype=torch.int64)
        packed[0, 0, :num_rows] = torch.as_tensor(token_ids)
        packed[1, 0, :num_rows] = positions
        wanted = torch.zeros(smallest_width(self.head_widths, num_logits), dtype=torch.int64)
        wanted[:num_logits] = torch.as_tensor(logits_rows, dtype=torch.int64)
        with running(step):
            output = self.model(
                input_ids=packed[0],
                position_ids=packed[1],
                use_cache=False,
                logits_to_keep=wanted,
            )
        self._stopwatch.lap(SMALL_OPERATIONS)
        logits: Tensor = output.logits[0, :num_logits]
        return logits


def _time(module: nn.Module, part: str, stopwatch: Stopwatch) -> None:
    """Charge the calls of ``module`` to ``part``; the hooks stay as long as the module."""
    module.register_forward_pre_hook(lambda *_: stopwatch.lap(SMALL_OPERATIONS))
    module.register_forward_hook(lambda *_: stopwatch.lap(part))
