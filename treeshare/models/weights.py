"""Changing a loaded model's weights in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


@torch.no_grad()
def change_weights(model: Any, weights: Mapping[str, Tensor]) -> bool:  # noqa: ANN401
    """Copy new values into a model's weights.

    Args:
        model: A transformers model.
        weights: New values by name in the model's state dict, of the same shapes; others stay.

    Returns:
        Whether KV that the model has computed is outdated: not if only the output layer changed, and no
        other layer shares its weights.

    Raises:
        ConfigError: If a name is not known or a shape differs; nothing was changed.
    """
    held = model.state_dict()
    for name, value in weights.items():
        shape = tuple(held[name].shape) if name in held else None
        if tuple(value.shape) != shape:
            expected = f"the shape {shape}" if shape else "a name in the model's state dict"
            raise ConfigError.of(f"weights[{name!r}]", got=tuple(value.shape), expected=expected)
    below_head = {parameter.data_ptr() for parameter in model.base_model.parameters()}
    for name, value in weights.items():
        held[name].copy_(value)
    return any(held[name].data_ptr() in below_head for name in weights)
