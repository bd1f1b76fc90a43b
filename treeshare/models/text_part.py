"""The text model that a configuration describes: its own, or the one inside a multimodal model.

A multimodal folder's configuration holds one of a text model, its sizes, windows and rope; fields of these
names beside it mean nothing. What goes through it as text alone goes through that text model and the output
layer, so these two are loaded and nothing else. ``scripts/model_table.py`` compares each kind with the whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from treeshare.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

WRAPPERS = frozenset(
    {
        "aria",
        "gemma3",
        "gemma4",
        "gemma4_unified",
        "got_ocr2",
        "idefics3",
        "internvl",
        "llama4",
        "llava",
        "llava_next",
        "llava_onevision",
        "mistral3",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_vl",
        "qwen3_vl_moe",
        "smolvlm",
    }
)
"""Multimodal kinds whose text, without images, was compared with the whole model's."""

_HEAD = re.compile(r"^(?:model\.)?(?:language_model|text_model)\.lm_head\.")
_NEWER = re.compile(r"^model\.(?:language_model|text_model)\.")
_OLDER = re.compile(r"^(?:language_model|text_model)\.(?:model\.)?")
_RENAMED = ((_HEAD, "lm_head."), (_NEWER, "model."), (_OLDER, "model."))
_RENAMES = {pattern.pattern: new for pattern, new in _RENAMED}
"""From names in the files, of older and newer versions of transformers, to those of the text model."""

_CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id")
_OUTER = ("quantization_config", "transformers_weights")
_OTHER_TOKENS = ("image_token", "video_token", "audio_token")


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """What is loaded of a model.

    Attributes:
        config: Its transformers configuration, of the text model alone.
        model_class: The class that is built: transformers' own, or made by ``class_for``.
        whole: The kind of the multimodal model that it is a part of; None: it is no part.
        renames: Patterns of names of its tensors in the files, and what takes their place.
        other_tokens: Tokens that stand for something else than text, with what they stand for.
    """

    config: Any
    model_class: Any
    whole: str | None = None
    renames: Mapping[str, str] = field(default_factory=dict)
    other_tokens: Mapping[int, str] = field(default_factory=dict)

    def name_of(self, tensor: str) -> str:
        """A tensor's name in the text model."""
        for pattern, new in _RENAMED if self.renames else ():
            tensor = pattern.sub(new, tensor, count=1)
        return tensor


def text_part(config: Any) -> TextPart:  # noqa: ANN401
    """The text model of a configuration.

    Raises:
        UnsupportedModelError: If there is none that is known to be used as text alone.
    """
    text, kind = _text_config(config), str(config.model_type)
    if text is config or kind not in WRAPPERS:
        return _own_part(config, text)
    for name in _CARRIED:
        if getattr(text, name, None) is None:
            setattr(text, name, getattr(config, name, None))
    for name in _OUTER:
        if getattr(text, name, None) is None and getattr(config, name, None) is not None:
            setattr(text, name, getattr(config, name))
    text.tie_word_embeddings = bool(getattr(config, "tie_word_embeddings", False))
    if getattr(text, "dtype", None) is None:
        text.dtype = getattr(config, "dtype", None)
    return TextPart(
        config=text,
        model_class=class_for(text),
        whole=kind,
        renames=_RENAMES,
        other_tokens=dict(_other_tokens(config)),
    )


def _own_part(config: Any, text: Any) -> TextPart:  # noqa: ANN401
    """A model that transformers itself takes for a text model, perhaps by a configuration inside its own."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if text is not config and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{config.model_type}: not implemented: a composite model of this kind "
            "(its text model was never compared with the whole model)"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{config.model_type}: not a causal language model (transformers has no such class for it)"
        )
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    if getattr(model_class, "config_class", None) is type(text):
        config = text
    return TextPart(config=config, model_class=model_class)


def _text_config(config: Any) -> Any:  # noqa: ANN401
    try:
        return config.get_text_config()
    except ValueError as error:  # there are several
        raise UnsupportedModelError(
            f"{config.model_type}: not implemented: a composite model with several text models"
        ) from error


def _other_tokens(config: Any) -> Iterator[tuple[int, str]]:  # noqa: ANN401
    for name in _OTHER_TOKENS:
        for end in ("_id", "_index"):
            token = getattr(config, name + end, None)
            if isinstance(token, int) and not isinstance(token, bool):
                yield token, name.removesuffix("_token")


def class_for(config: Any) -> Any:  # noqa: ANN401
    """The causal language model of a text model's configuration: transformers' own, or one made here."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

    own = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if own is not None:
        return own
    body = MODEL_MAPPING.get(type(config), None)
    if body is None:
        raise UnsupportedModelError(f"{config.model_type}: transformers has no text model of it")
    name = body.__name__.removesuffix("Model") + "ForCausalLM"
    if name not in _MADE:
        parent = next(kind for kind in body.__mro__[1:] if issubclass(kind, PreTrainedModel))
        fields = {"__module__": body.__module__, "body_class": body, "config_class": type(config)}
        _MADE[name] = type(name, (_TextModel, parent, GenerationMixin), fields)
    return _MADE[name]


_MADE: dict[str, Any] = {}


class _TextModel:
    """A text model with an output layer: what transformers has as a part of a multimodal class only."""

    base_model_prefix = "model"
    body_class: Any
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012  # transformers' form
    _checkpoint_conversion_mapping: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        super().__init__(config)  # type: ignore[call-arg]  # of the text model's own parent
        self.model = self.body_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        input_ids: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,  # noqa: ANN401
    ) -> CausalLMOutputWithPast:
        """As the forward of transformers' causal language models."""
        outputs = self.model(input_ids=input_ids, **kwargs)
        rows = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, rows, :])
        return CausalLMOutputWithPast(logits=logits, past_key_values=outputs.past_key_values)
