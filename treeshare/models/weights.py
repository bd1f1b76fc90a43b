"""Changing a loaded model's weights in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import ConfigError
from treeshare.models.tensor_names import shortened

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
        ConfigError: If a name is not known, a shape differs, or two names of one weight come with different
            values; nothing was changed.
    """
    held = model.state_dict()
    for name, value in weights.items():
        shape = tuple(held[name].shape) if name in held else None
        if tuple(value.shape) != shape:
            expected = f"the shape {shape}" if shape else "a name in the model's state dict"
            raise ConfigError.of(f"weights[{name!r}]", got=tuple(value.shape), expected=expected)
    _require_one_value(held, weights)
    below_head = {parameter.data_ptr() for parameter in model.base_model.parameters()}
    for name, value in weights.items():
        held[name].copy_(value)
    return any(held[name].data_ptr() in below_head for name in weights)


def _require_one_value(held: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse different values for one weight that has several names, as a tied head has."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, value in weights.items():
        other = first.setdefault((held[name].data_ptr(), tuple(held[name].shape)), name)
        if other != name and not torch.equal(value, weights[other].to(value)):
            raise ConfigError.of(
                f"weights[{name!r}]",
                got=f"another value than weights[{other!r}]",
                expected="the same: they are one weight of this model",
            )


def require_all_weights(model: Any, weights: Mapping[str, Tensor]) -> None:  # noqa: ANN401
    """Check that ``weights`` leave none of a model's weights as it was.

    Raises:
        ConfigError: Naming those that are not among them, under none of their names.
    """
    held = model.state_dict()
    given = {held[name].data_ptr() for name in weights if name in held}
    missing = [name for name, value in held.items() if value.numel() and value.data_ptr() not in given]
    if missing:
        raise ConfigError.of(
            "weights",
            got=f"{len(held) - len(missing)} of {len(held)}, without {shortened(missing)}",
            expected="all weights of the model that generates",
        )
