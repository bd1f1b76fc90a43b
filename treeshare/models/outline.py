"""What a model computes and stores, found from its configuration: it is built and run without memory.

On the meta device tensors have shapes and no numbers, so a model of any size takes a second or two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from treeshare.errors import UnsupportedModelError
from treeshare.models.adapter import ATTENTION_NAME
from treeshare.models.calls import discover_calls
from treeshare.models.construction import bounded, quietly
from treeshare.models.written_out import require_known_features, set_attention

if TYPE_CHECKING:
    from treeshare.kv import KVGeometry
    from treeshare.models.step import AttentionCall

_MAX_TENSORS, _MAX_NUMBERS = 3_000, 1 << 40
"""Of a model whose files are not there to say how much they hold."""

_DTYPE = torch.bfloat16
"""In which it is built: some of torch's operations have no shapes for others."""


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A model without its numbers.

    Attributes:
        geometry: Shape of its KV.
        calls: Its calls of attention, in their order.
        num_weights: Numbers in its weights.
    """

    geometry: KVGeometry
    calls: tuple[AttentionCall, ...]
    num_weights: int

    def kept_bytes(self) -> dict[int | None, int]:
        """KV bytes of a token by how many of the last tokens are read; None: all are."""
        reach: dict[int, int | None] = {}
        for call in self.calls:
            lengths = [length for length in (call.spec.window, call.spec.chunk) if length]
            own = min(lengths, default=None)
            known = reach.get(call.layer, 0)
            reach[call.layer] = None if own is None or known is None else max(own, known)
        kept: dict[int | None, int] = {}
        for layer, length in sorted(reach.items()):
            size = self.geometry.layers[layer].size * self.geometry.dtype.itemsize
            kept[length] = kept.get(length, 0) + size
        return kept


class _NothingIsKnown(TorchFunctionMode):
    """Code that asks a tensor without numbers gets yes: such as whether positions are one sequence's."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func in (torch.Tensor.__bool__, torch.Tensor.item) and args[0].device.type == "meta":
            return True
        return func(*args, **(kwargs or {}))


def find_outline(config: Any, dtype: torch.dtype, name: str) -> Outline | None:  # noqa: ANN401
    """The outline of a model; None if its code needs numbers to be followed.

    Args:
        config: Its transformers configuration.
        dtype: Of its weights.
        name: What the user calls it.

    Raises:
        ModelLoadError: If the configuration describes more than any model has.
        UnsupportedModelError: If it needs what is not implemented, or is no causal language model.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{config.model_type}: not a causal language model (transformers has no such class for it)"
        )
    room = bounded(name, num_tensors=_MAX_TENSORS, num_elements=_MAX_NUMBERS)
    with quietly(), room, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=_DTYPE).eval()
    require_known_features(model)
    set_attention(model, ATTENTION_NAME)
    try:
        with quietly(), _NothingIsKnown():
            geometry, calls = discover_calls(model)
    except (RuntimeError, NotImplementedError, UnsupportedModelError):
        return None
    weights = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return Outline(geometry=replace(geometry, dtype=dtype), calls=calls, num_weights=sum(weights.values()))
