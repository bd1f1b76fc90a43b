"""Attention of model code that does not go through transformers' interface, or not with all it needs.

A module's ``forward`` is replaced on the instance, and is the class's own wherever another attention than
treeshare's is set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from treeshare.errors import UnsupportedModelError
from treeshare.models.adapter import ATTENTION_NAME, attend
from treeshare.models.step import TreeStep, current_step
from treeshare.models.support import other_kind, unsupported_features

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


class _OwnForward:
    """The forward of a module that is treeshare's where its attention is."""

    def __init__(self, module: Any) -> None:  # noqa: ANN401
        self._module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        module = self._module
        own = module.config._attn_implementation == ATTENTION_NAME
        forward = self.attend if own else type(module).forward.__get__(module)
        return forward(*args, **kwargs)

    def attend(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """The module's forward by treeshare's attention."""
        raise NotImplementedError


class _Falcon(_OwnForward):
    """Falcon without ALiBi: its code scores keys itself."""

    def attend(
        self,
        hidden_states: Tensor,
        alibi: Tensor | None,
        attention_mask: Tensor | None,
        *_: Any,  # noqa: ANN401
        position_embeddings: tuple[Tensor, Tensor],
        **__: Any,  # noqa: ANN401
    ) -> tuple[Tensor, None]:
        """See ``FalconAttention.forward``; keys and values are not repeated for the heads that share them."""
        from transformers.models.falcon.modeling_falcon import apply_rotary_pos_emb

        assert alibi is None, "refused at load time"
        module = self._module
        query, key, value = module._split_heads(module.query_key_value(hidden_states))
        if module.new_decoder_architecture:
            group = module.num_heads // module.num_kv_heads
            key, value = key[:, :, ::group], value[:, :, ::group]
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        out, _weights = attend(module, query, key, value, attention_mask)
        return module.dense(out.flatten(2)), None


class _Llama4(_OwnForward):
    """Llama 4's layers without rope scale queries by a row's place in its sequence, as its cache tells it."""

    def attend(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """See ``Llama4TextAttention.forward``."""
        kwargs.pop("cache", None)
        module = self._module
        hidden = args[0] if args else kwargs["hidden_states"]
        return type(module).forward(module, *args, cache=_Positions(hidden.shape[1]), **kwargs)


class _Positions:
    """Stands for a cache: stores nothing, and how far positions are from places in the call."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def get_seq_length(self, *_: object) -> Tensor | int:
        """What to add to a row's place to get its position."""
        step = current_step()
        if isinstance(step, TorchDispatchMode):
            raise RuntimeError("positions are not among the arguments of a layer")
        if not isinstance(step, TreeStep):  # it computes no attention
            return 0
        positions = step.layout.positions
        offsets = positions - torch.arange(len(positions))
        return torch.nn.functional.pad(offsets, (0, self._num_rows - len(positions)))

    def update(self, key: Tensor, value: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """The keys and values of the call alone."""
        return key, value


_FORWARDS: dict[str, Callable[[nn.Module], _OwnForward]] = {
    "FalconAttention": _Falcon,
    "Llama4TextAttention": _Llama4,
}


def bind_attention(model: nn.Module) -> bool:
    """Replace the forwards of modules whose attention is known here; returns whether there are any."""
    modules: list[Any] = [module for module in model.modules() if type(module).__name__ in _FORWARDS]
    for module in modules:
        module.forward = _FORWARDS[type(module).__name__](module)
    return bool(modules)


def require_known_features(model: Any) -> None:  # noqa: ANN401
    """Bind the attention of a model's code, where that is known, and refuse what is not implemented.

    Raises:
        UnsupportedModelError: Naming each feature, or what the model is instead of a causal language model.
    """
    kind = model.config.model_type
    if other := other_kind(model.config):
        raise UnsupportedModelError(f"{kind}: not a causal language model ({other})")
    features = unsupported_features(model)
    if not features and not bind_attention(model) and not model._can_set_attn_implementation():
        features = ["layers without transformers' attention interface"]
    if features:
        raise UnsupportedModelError(f"{kind}: not implemented: {'; '.join(features)}")


def set_attention(model: Any, name: str) -> None:  # noqa: ANN401
    """Let a model's attention be one of transformers', or treeshare's, with or without an interface."""
    if model._can_set_attn_implementation():
        model.set_attn_implementation(name)
    else:
        model.config._attn_implementation_internal = name
