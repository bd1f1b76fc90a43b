"""Sampling parameters that a model's publisher suggests in ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treeshare.errors import ConfigError, DataError, one_line
from treeshare.files import parse_json, read_file
from treeshare.sampling.params import SamplingParams

OF_DRAWING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""What may be suggested of how a token is drawn."""

_NAMES = {name: name for name in OF_DRAWING} | {"max_new_tokens": "max_tokens"}
"""Of the file, as vLLM reads it, and treeshare's own."""

_FILE = "generation_config.json"
_MAX_BYTES = 1 << 20


def suggestions(
    generation_config: object, own: Mapping[str, Any], override: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Parameters that hold where a caller gives none, by treeshare's names.

    Args:
        generation_config: ``auto`` takes the model's own, ``vllm`` none, a folder the file in it.
        own: The fields of the model's own; ``eos_token_id`` lists all tokens that end its completions.
        override: Fields that are put above them.

    Raises:
        ConfigError: If ``generation_config`` or ``override`` is something else, or the folder's file has
            other tokens that end a completion.
        DataError: If the folder's file cannot be read.
    """
    if not isinstance(override, Mapping | None):
        raise ConfigError.of("override_generation_config", got=override, expected="a mapping, or None")
    unknown = [name for name, value in (override or {}).items() if name not in _NAMES and value is not None]
    if unknown:
        expected, remedy = f"of {', '.join(_NAMES)}", "SamplingParams has all others"
        raise ConfigError.of("override_generation_config", got=unknown[0], expected=expected, remedy=remedy)
    fields: Mapping[str, Any] = {}
    if generation_config == "auto":
        fields = own
    elif generation_config != "vllm":
        fields = _read(generation_config)
        _refuse_other_endings(fields.get("eos_token_id"), own.get("eos_token_id"))
    fields = {**fields, **(override or {})}
    return {ours: fields[theirs] for theirs, ours in _NAMES.items() if fields.get(theirs) is not None}


def _read(folder: object) -> Mapping[str, Any]:
    if not isinstance(folder, str | Path) or not str(folder) or not Path(folder).is_dir():
        raise ConfigError.of("generation_config", got=folder, expected="auto, vllm or a folder")
    path = Path(folder) / _FILE
    content = read_file(path, _FILE, max_bytes=_MAX_BYTES)
    try:
        fields = parse_json(content)
    except ValueError as error:
        raise DataError(f"{one_line(path)}: no JSON: {one_line(error)}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{one_line(path)}: got {type(fields).__name__}, expected a JSON object")
    return fields


def _refuse_other_endings(given: object, known: object) -> None:
    """VLLM ends every request at the file's tokens; here only the model's own do."""
    ids, own = (value if isinstance(value, list) else [value] for value in (given, known))
    others = [token for token in ids if token is not None and token not in own]
    if others:
        expected = f"a token that ends the model's completions ({', '.join(map(str, own)) or 'none does'})"
        remedy = "remove it from the folder's file, and use SamplingParams(stop_token_ids=[...])"
        raise ConfigError.of(
            "generation_config: eos_token_id", got=others[0], expected=expected, remedy=remedy
        )


def suggested_params(suggested: Mapping[str, Any], model_id: str) -> SamplingParams:
    """The defaults, which are vLLM's, but for what ``suggested`` names.

    Raises:
        ConfigError: If a value is out of range; the message says whose it is and how to do without.
    """
    try:
        return SamplingParams(**suggested)
    except ConfigError as error:
        raise ConfigError(
            f"generation_config.json of {one_line(model_id)}: {error}; "
            "generation_config='vllm' ignores the file"
        ) from error
