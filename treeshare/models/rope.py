"""Rotary embeddings whose angles depend on a call's longest sequence: held at one of their sets.

In transformers a call looks at its largest position. ``dynamic`` changes beyond the model's own number of
positions, which no sequence here passes. ``longrope`` has factors for sequences up to the original context
and others for longer ones; a packed row has sequences of both kinds, and KV outlives a call. So, as in vLLM,
the longest sequence that the model may be given decides for all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

_BY_LENGTH = ("dynamic", "longrope")
_LONG = "longrope"


class _AsLong:
    """The forward of a rotary embedding, for which each call has a position beyond the original context.

    Args:
        module: The embedding.
        last: That position.
    """

    def __init__(self, module: nn.Module, last: int) -> None:
        self._forward, self._last = module.forward, last

    def __call__(self, x: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Angles of ``position_ids``, as the module has them in a call with a long sequence."""
        last = position_ids.new_full((*position_ids.shape[:-1], 1), self._last)
        angles = self._forward(x, torch.cat([position_ids, last], dim=-1), *args, **kwargs)
        count = position_ids.shape[-1]
        if isinstance(angles, torch.Tensor):
            return angles.narrow(-2, 0, count)
        return tuple(part.narrow(-2, 0, count) for part in angles)


def hold_rope(model: nn.Module, longest: int) -> int | None:
    """Let ``longrope`` use its long factors in every call, if sequences may pass its original context.

    Args:
        model: A model whose embeddings are as transformers made them.
        longest: Tokens of the longest sequence that it may be given.

    Returns:
        The original context where the long factors are used, else None.
    """
    passed = None
    for module in model.modules():
        originals = [original for kind, original in _kinds(module) if kind == _LONG and original < longest]
        if originals:
            passed = max(originals)
            if not isinstance(vars(module).get("forward"), _AsLong):
                module.forward = _AsLong(module, passed)
    return passed


def unknown_ropes(model: Any) -> list[str]:  # noqa: ANN401
    """Kinds that depend on the longest sequence, by the configuration, and that no module of the model names.

    Said by a field of the configuration, or a field for each layer type inside it.
    """
    named: set[str] = set()
    for name in ("rope_parameters", "rope_scaling"):
        rope = getattr(model.config, name, None)
        parts = [rope, *rope.values()] if isinstance(rope, dict) else []
        named.update(str(part.get("rope_type", part.get("type"))) for part in parts if isinstance(part, dict))
    known = {kind for module in model.modules() for kind, _ in _kinds(module)}
    return sorted(kind for kind in named - known if any(part in kind for part in _BY_LENGTH))


def _kinds(module: nn.Module) -> Iterator[tuple[str, int]]:
    """The kinds of a rotary embedding, one for each layer type, and the original context of each."""
    found = getattr(module, "rope_type", None)
    config: Any = getattr(module, "config", None)
    if isinstance(found, str):
        yield found, _original(config, getattr(config, "rope_parameters", None))
    elif isinstance(found, dict):
        for layer, kind in found.items():
            yield str(kind), _original(config, (getattr(config, "rope_parameters", None) or {}).get(layer))


def _original(config: Any, rope: Any) -> int:  # noqa: ANN401
    """The original context that a kind's parameters name; else the model's number of positions."""
    own = rope.get("original_max_position_embeddings") if isinstance(rope, dict) else None
    number = own or getattr(config, "max_position_embeddings", None)
    return number if isinstance(number, int) else 1 << 62
