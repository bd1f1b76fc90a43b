"""Models that are already in memory: a second model shares their weights."""

from __future__ import annotations

import copy
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeGuard

from treeshare.errors import ConfigError, UnsupportedModelError
from treeshare.models.text_part import text_part

if TYPE_CHECKING:
    from torch import nn


def is_model(model: object) -> TypeGuard[nn.Module]:
    """Whether this is a model, and not the name of one."""
    from torch import nn

    return isinstance(model, nn.Module)


def shadow_of(model: nn.Module, dtype: str, device: str, quantization: str | None, *, shares: bool) -> Any:  # noqa: ANN401
    """A model of the same modules and weights; binding it leaves ``model`` as it is.

    Args:
        model: A transformers causal language model.
        dtype: ``auto``, or the one that it has.
        device: The one on which it is.
        quantization: None: its weights are shared, not made anew.
        shares: Whether the weights are the model's own; else copies, which may be changed.

    Raises:
        ConfigError: If it has another dtype, or is on another device, or is to be quantised.
        UnsupportedModelError: If it is no causal language model, or a wrapper of one.
    """
    from transformers import PreTrainedModel

    kind = type(model).__name__
    if hasattr(model, "merge_and_unload"):
        raise ConfigError.of(
            "model", got=f"a {kind}", expected="a model without adapters; model.merge_and_unload()"
        )
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise UnsupportedModelError(f"model: {kind} is not a causal language model of transformers")
    if text_part(model.config).config is not model.config:
        raise UnsupportedModelError(
            f"{model.config.model_type}: of a multimodal model in memory, give the text model only"
        )
    own = {str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()}
    if own not in ({"float32"}, {"bfloat16"}) or dtype not in ("auto", *own):
        raise ConfigError.of(
            "model",
            got=f"weights in {', '.join(sorted(own))}",
            expected="all in float32 or bfloat16, as dtype says",
        )
    if model.device.type != device:
        raise ConfigError.of("model", got=f"one on {model.device}", expected=f"one on {device}")
    if quantization is not None:
        raise ConfigError.of(
            "quantization",
            got=quantization,
            expected="None: a model in memory shares its weights; save it and load its folder",
        )
    shared = chain(model.parameters(), model.buffers()) if shares else ()
    return copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
