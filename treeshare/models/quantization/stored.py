"""Int8 weights in the user's cache: a model is quantised once, and later loads read codes.

A folder is named by the files that the weights came from: their places, sizes and times. It has one file of
tensors: codes, scales and sums of each weight in codes, and the other weights as they are.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

from treeshare.errors import ModelLoadError, one_line
from treeshare.failures import refusing
from treeshare.models.cache import is_whole, made_once, model_folder, writing
from treeshare.models.checkpoint import DTYPES, read_headers, resolve_dtype, weight_files
from treeshare.models.construction import bounded
from treeshare.models.folder import CONFIG, GENERATION, find_file, require_endings
from treeshare.models.quantization.modules import bind_codes, placeholder, weights_in_codes
from treeshare.models.quantization.weights import INT8, Int8Weights, int8_format
from treeshare.models.tensor_names import shortened
from treeshare.native.int8 import PackedWeights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from treeshare.models.text_part import TextPart

_FORMAT = 1
"""Version of the stored folders; raise it when codes or their layout change."""

_FILE = "weights.safetensors"


def stored_folder(source: str, name: str, dtype: str, config: Any) -> Path:  # noqa: ANN401
    """Where the int8 weights of a model are kept; perhaps not there yet.

    Args:
        source: A folder or a hub id.
        name: What the user calls it.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        config: Its configuration.

    Raises:
        ModelLoadError: If the model's files cannot be read.
    """
    files = weight_files(source, config, download=True)
    own = find_file(source, CONFIG, download=True)
    with refusing(f"model: cannot load {name}"):
        parts: list[object] = [str(resolve_dtype(config, dtype, read_headers(files, name)))]
        for file in [*files, *([own] if own else [])]:
            state = file.resolve().stat()
            parts.append([str(file.resolve()), state.st_size, state.st_mtime_ns])
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return model_folder(name, f"{digest[:16]}-{INT8}-v{_FORMAT}")


def store(model: Any, folder: Path, name: str) -> None:  # noqa: ANN401
    """Keep a quantised model's weights in ``folder``.

    Raises:
        ModelLoadError: If the cache cannot be written.
    """
    from safetensors.torch import save_file

    codes = weights_in_codes(model)
    tensors: dict[str, Tensor] = {}
    coded: dict[str, dict[str, Any]] = {}
    keys: dict[int, str] = {}
    for key, tensor in model.state_dict().items():
        weights = codes.get(key)
        if weights is None:
            tensors[key] = tensor.detach().clone()
            continue
        first = keys.setdefault(id(weights), key)
        if first == key:
            tensors |= {f"{key}:{part}": values.contiguous() for part, values in weights.tensors.items()}
        coded[key] = {
            "shape": list(tensor.shape),
            "first": first,
            "num_outputs": weights.packed.num_outputs,
            "num_inputs": weights.format.num_inputs,
            "transform": weights.format.transform,
        }
    about = {
        "tied": bool(model.config.tie_word_embeddings),
        "dtype": str(model.dtype).removeprefix("torch."),
        "coded": coded,
    }

    def fill(partial: Path) -> None:
        with writing(partial.parent):
            save_file(tensors, partial / _FILE, {"about": json.dumps(about)})

    made_once(folder, name, "writing int8 weights", fill)


def read_stored(part: TextPart, source: str, name: str, folder: Path) -> Any | None:  # noqa: ANN401
    """The quantised model of ``source`` by the weights in ``folder``; None if it is not there.

    The part's configuration is the model's from now on.

    Raises:
        ModelLoadError: If they cannot be read, or are another model's.
    """
    if not is_whole(folder):
        return None
    config = part.config
    with refusing(f"model cache: cannot read {one_line(folder)}", "remove this folder"):
        about, tensors = _read(folder / _FILE)
        coded = about["coded"]
        dtype = DTYPES[about["dtype"]]
        state = {key: tensor for key, tensor in tensors.items() if ":" not in key}
        state |= {key: placeholder(torch.Size(entry["shape"]), dtype).data for key, entry in coded.items()}
        config.tie_word_embeddings = about["tied"]
        model = made_model(name, config, part.model_class, state, dtype)
        bind_codes(model, _codes(model, coded, tensors))
    read_endings(model, source, name)
    return model


def read_endings(model: Any, source: str, name: str) -> None:  # noqa: ANN401
    """Give a model its generation configuration, which says what ends a completion.

    Raises:
        ModelLoadError: If it cannot be read.
    """
    generation = find_file(source, GENERATION, download=True)
    if generation is not None:
        require_endings(generation)
        with refusing(f"model: cannot load {name}"):
            model.generation_config = GenerationConfig.from_pretrained(str(generation.parent))


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says about a model, and its tensors, in memory of their own."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        about = json.loads((opened.metadata() or {})["about"])
        return about, {key: opened.get_tensor(key).clone() for key in opened.keys()}  # noqa: SIM118  # no mapping


def made_model(
    name: str,
    config: Any,  # noqa: ANN401
    model_class: Any,  # noqa: ANN401
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
) -> Any:  # noqa: ANN401
    """The transformers model with these weights; where they lie in memory, they stay.

    Args:
        name: What the user calls it.
        config: Its configuration.
        model_class: Its class.
        state: All its weights; ``placeholder`` for those in codes.
        dtype: Theirs.

    Raises:
        ModelLoadError: If they are not all its weights.
    """
    numbers = sum(tensor.numel() for tensor in state.values())
    with bounded(name, num_tensors=len(state), num_elements=numbers):
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=dict(state), dtype=dtype, output_loading_info=True
        )
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise ModelLoadError(f"model: cannot load {name}: not its weights: {shortened(map(str, wrong))}")
    return model


def _codes(
    model: nn.Module, coded: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> dict[str, Int8Weights]:
    """Int8 weights of a model's modules, by the modules' names; those of a tied head are the embedding's."""
    made: dict[str, Int8Weights] = {}
    found = {}
    for key, entry in coded.items():
        name, first = key.removesuffix(".weight"), entry["first"]
        if first not in made:
            bias = getattr(model.get_submodule(name), "bias", None)
            packed = PackedWeights(
                format=int8_format(entry["num_inputs"], entry["transform"]),
                num_outputs=entry["num_outputs"],
                **{part: tensors[f"{first}:{part}"] for part in ("codes", "scales", "sums")},
                bias=None if bias is None else bias.detach().float().clone(),
            )
            made[first] = Int8Weights(packed)
        found[name] = made[first]
    return found
