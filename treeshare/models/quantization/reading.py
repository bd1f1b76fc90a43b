"""Reading a model that is to have int8 weights: from the cache, from files that have them, or any others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from treeshare.errors import ModelLoadError
from treeshare.models.checkpoint import read_model, say
from treeshare.models.quantization.compressed import quantization_of, read_compressed, require_w8a8
from treeshare.models.quantization.modules import quantize_model
from treeshare.models.quantization.stored import read_stored, store, stored_folder

if TYPE_CHECKING:
    from pathlib import Path

    from treeshare.models.text_part import TextPart


def read_int8(part: TextPart, source: str, name: str, dtype: str) -> tuple[Any, Path | None]:
    """A model with int8 weights, and the folder where they are to be kept, if they are not there yet.

    Args:
        part: What ``read_part`` found.
        source: A folder or a hub id.
        name: What the user calls it.
        dtype: ``auto``, ``float32`` or ``bfloat16``.

    Raises:
        ModelLoadError: As ``read_model``.
        UnsupportedModelError: If its files are quantised in a way that is not known.
    """
    config = part.config
    own = quantization_of(config)
    if own is not None:
        require_w8a8(own, name)
        return read_compressed(part, source, name, dtype), None
    folder = stored_folder(source, name, dtype, config)
    model = read_stored(part, source, name, folder)
    if model is not None:
        return model, None
    model = read_model(part, source, name, dtype)
    quantize_model(model)
    return model, folder


def keep(model: Any, folder: Path, name: str) -> None:  # noqa: ANN401
    """Keep int8 weights for later loads; where that cannot be, it is said, and they are made each time."""
    try:
        store(model, folder, name)
    except ModelLoadError as error:
        say(name, str(error))
