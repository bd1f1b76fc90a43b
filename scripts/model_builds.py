"""Tiny random models of ``model_table.py``: one of each class, as transformers makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from model_configs import FIELDS, VARIANTS, WRAPPERS

if TYPE_CHECKING:
    from pathlib import Path

FIRST_LENGTH, MAX_POSITIONS = 16, 128
"""Windows of small models begin at this length; their number of positions."""

_MAX_REASON = 160
"""Characters of what a library says."""


class NotBuilt(Exception):
    """transformers cannot build or run a small model of a class; the text says why."""


def full_config(name: str) -> tuple[Any, Any]:
    """A class and its configuration of full size.

    Raises:
        NotBuilt: If transformers cannot make it.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    family = name.partition(",")[0]
    fields = FIELDS.get(family, {}) | VARIANTS.get(name, {})
    try:
        config = CONFIG_MAPPING[family](**fields)
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config
    except Exception as error:  # whatever a class's code raises
        raise NotBuilt(short(error)) from error


def build(name: str) -> tuple[Any, Any]:
    """A tiny random model, as transformers makes it, and the configuration that its folder has.

    Raises:
        NotBuilt: If transformers cannot.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    from treeshare.models.miniature import Miniature, small_model

    if name in WRAPPERS:
        return build_wrapper(name)
    model_class, config = full_config(name)
    whole = None
    if model_class.config_class is not type(config):
        if type(_text_config(config)) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            small = Miniature(first_length=FIRST_LENGTH, max_positions=MAX_POSITIONS)
            whole = config = small.config(config)
        config = _text_config(config)
    errors: list[Exception] = []
    model = small_model(
        model_class, config, first_length=FIRST_LENGTH, max_positions=MAX_POSITIONS, errors=errors
    )
    if model is None:
        raise NotBuilt(short(errors[0]) if errors else "too large")
    return model, whole or model.config


def build_wrapper(name: str) -> tuple[Any, Any]:
    """A tiny random multimodal model, and its configuration.

    Raises:
        NotBuilt: If transformers cannot.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    from treeshare.models.miniature import Miniature, spread_weights

    vision, more = WRAPPERS[name]
    try:
        full = CONFIG_MAPPING[name](text_config=more) if more else CONFIG_MAPPING[name]()
        small = Miniature(first_length=FIRST_LENGTH, max_positions=MAX_POSITIONS)
        fields: dict[str, Any] = {"text_config": small.config(full.get_text_config()).to_dict()}
        for key, value in full.to_dict().items():
            if key.endswith(("_token_id", "_token_index")) and isinstance(value, int):
                fields[key] = 1  # which no prompt has
        if hasattr(full, "audio_config"):
            fields["audio_config"] = None
        config = CONFIG_MAPPING[name](vision_config=vision, **fields)
        model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]._from_config(config, dtype=torch.float32)
        spread_weights(model.eval())
    except Exception as error:  # whatever a class's code raises
        raise NotBuilt(short(error)) from error
    return model, model.config


def reference(folder: Path) -> Any:  # noqa: ANN401
    """A saved model as transformers loads it, in float32: the whole of a multimodal one."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    is_whole = AutoConfig.from_pretrained(folder).model_type in WRAPPERS
    kind = AutoModelForImageTextToText if is_whole else AutoModelForCausalLM
    return kind.from_pretrained(folder, dtype=torch.float32).eval()


def _text_config(config: Any) -> Any:  # noqa: ANN401
    try:
        return config.get_text_config()
    except ValueError as error:  # there are several
        raise NotBuilt(short(error)) from error


def short(error: Exception) -> str:
    """What a library raised, on one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 4] + " ..."
