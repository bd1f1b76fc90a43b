"""Loads safetensors of a folder or a hub repository as a transformers model: with all weights, or not at all.

transformers makes up a weight that the files lack, at random, and says so in a table that nobody sees. Here
such a model is refused, and what is done beyond the files' own words is said on stderr.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import ConfigError, ModelLoadError, UnsupportedModelError, one_line
from treeshare.failures import refusing
from treeshare.models.construction import bounded
from treeshare.models.folder import (
    CONFIG,
    GENERATION,
    find_file,
    read_object,
    require_endings,
    require_known_code,
    require_layers,
    require_no_adapter,
    require_readable,
    require_safetensors,
)
from treeshare.models.support import other_kind
from treeshare.models.tensor_names import ADAPTERS, doubles, lost_experts, renames, shortened, wrappers
from treeshare.models.text_part import TextPart, text_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_HALVES = ("half", "float16", "fp16")


def dtype_name(dtype: object) -> str:
    """The name of a dtype that was given by name, vLLM's names among them, or as torch's.

    Raises:
        ConfigError: If weights and KV cannot have it.
    """
    name = str(dtype).removeprefix("torch.")
    name = {"float": "float32", "bf16": "bfloat16"}.get(name, name)
    if name != "auto" and name not in DTYPES:
        remedy = "on CPUs bfloat16 is as fast and has float32's range" if name in _HALVES else ""
        raise ConfigError.of(
            "dtype", got=str(dtype), expected="one of auto, " + ", ".join(DTYPES), remedy=remedy
        )
    return name


_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"

_DEQUANTISED = ("fp8", "mxfp4")
"""Ways of quantising whose files transformers can read as plain weights."""

_OF_PACKAGES = ("bitnet", "compressed-tensors")
"""Others that transformers can, some with a package of which it says the name."""

_TRAINING_SHARD = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files of a distributed training checkpoint, which transformers would prefer to all others."""


def say(name: str, text: str) -> None:
    """Tell the user what was done with the model ``name`` that its files do not say."""
    print(f"{one_line(name)}: {text}", file=sys.stderr, flush=True)


def read_config(source: str, name: str) -> Any:  # noqa: ANN401
    """The transformers configuration of ``source``, a folder or hub id that the user calls ``name``.

    Raises:
        ModelLoadError: If there is none that can be read.
    """
    from transformers import AutoConfig

    if Path(source).is_dir():
        require_readable(Path(source))
    with refusing(f"model: cannot load {name}"):
        path = find_file(source, CONFIG, download=True)
    if path is not None:
        require_layers(path)
        require_known_code(path, name)
    with refusing(f"model: cannot load {name}" + (f": {CONFIG}" if path else "")):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        config._attn_implementation = config._experts_implementation = None  # may name code on the hub
    return config


def resolve_dtype(config: Any, dtype: str, tensors: Mapping[str, TensorInfo]) -> torch.dtype:  # noqa: ANN401
    """The dtype that a model is to have.

    Args:
        config: Its configuration.
        dtype: What the user asked for; ``auto`` is the configuration's or, where that says nothing, the one
            that most of the file's numbers have; float16 becomes float32.
        tensors: Those of its files, as far as they are known.
    """
    if dtype != "auto":
        return DTYPES[dtype]
    own = getattr(config, "dtype", None)
    if own is None:
        own = getattr(config.get_text_config(), "dtype", None)
    if own is None:
        counts = Counter[str]()
        for tensor in tensors.values():
            counts[tensor.dtype] += tensor.num_elements
        floats = {kind: count for kind, count in counts.items() if kind in ("F64", "F32", "F16", "BF16")}
        own = {"BF16": torch.bfloat16}.get(max(floats, key=lambda kind: floats[kind], default=""))
    return torch.bfloat16 if own in (torch.bfloat16, "bfloat16") else torch.float32


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as its file's header describes it.

    Attributes:
        file: The file's name.
        dtype: In safetensors' words: ``F32``, ``BF16``.
        num_elements: How many numbers it holds.
    """

    file: str
    dtype: str
    num_elements: int


def read_headers(files: Iterable[Path], name: str) -> dict[str, TensorInfo]:
    """Which tensors there are in ``files``.

    Raises:
        ModelLoadError: If one is in two files, or a file cannot be read.
    """
    from safetensors import safe_open

    found: dict[str, TensorInfo] = {}
    twice = []
    for file in files:
        with (
            refusing(f"model: cannot load {name}: {one_line(file.name)}", "get this file again"),
            safe_open(file, framework="pt") as opened,
        ):
            for key in opened.keys():  # noqa: SIM118  # no mapping
                part = opened.get_slice(key)
                count = int(torch.Size(part.get_shape()).numel())
                if key in found:
                    twice.append(key)
                found[key] = TensorInfo(file=file.name, dtype=part.get_dtype(), num_elements=count)
    if twice:
        raise ModelLoadError(
            f"model: cannot load {name}: two of its files contain the same tensors: {shortened(twice)}"
        )
    return found


def weight_files(source: str, config: Any, *, download: bool) -> list[Path]:  # noqa: ANN401
    """The safetensors files from which transformers would load ``source``; none if there are none.

    Args:
        source: A folder or a hub id.
        config: Its configuration, which may name a file.
        download: Whether what a hub id lacks here may be downloaded.

    Raises:
        ModelLoadError: If an index cannot be read, or names files of another kind.
    """
    own = getattr(config, "transformers_weights", None)
    if own and not (_is_plain(own) and own.endswith((".safetensors", ".safetensors.index.json"))):
        raise ModelLoadError(
            f"model: cannot load {one_line(source)}: {CONFIG}: transformers_weights: "
            f"got {one_line(own, 80)}, expected the name of a .safetensors file beside it"
        )
    for filename in [own] if own else [_FILE, INDEX]:
        path = find_file(source, filename, download=download)
        if path is None:
            continue
        if not filename.endswith(".index.json"):
            return [path]
        names = _shards(path)
        shards = [find_file(source, shard, download=download) for shard in names]
        lost = [shard for shard, there in zip(names, shards, strict=True) if there is None]
        if lost and download:
            raise ModelLoadError(
                f"model: cannot load {one_line(source)}: {filename} names files that do not exist: "
                f"{shortened(lost)}"
            )
        return [shard for shard in shards if shard is not None]
    return []


def _shards(index: Path) -> Sequence[str]:
    """The files that an index names."""
    places = read_object(index).get("weight_map")
    names = list(places.values()) if isinstance(places, dict) else []
    wrong = [name for name in names if not (_is_plain(name) and name.endswith(".safetensors"))]
    if wrong or not names:
        got = shortened({one_line(name, 80) for name in wrong}) or "no file"
        raise ModelLoadError(
            f"model: {one_line(index)}: got {got}, expected names of .safetensors files beside it"
        )
    return sorted(set(names))


def _is_plain(name: object) -> bool:
    """Whether ``name`` is one of a file in the same folder."""
    return isinstance(name, str) and Path(name).name == name and "\0" not in name


def read_part(source: str, name: str) -> TextPart:
    """What is to be loaded of ``source``, a folder or hub id that the user calls ``name``.

    Raises:
        ModelLoadError: If its configuration cannot be read.
        UnsupportedModelError: If it describes no causal language model, nor one with a known one inside.
    """
    config = read_config(source, name)
    if other := other_kind(config):
        raise UnsupportedModelError(f"{config.model_type}: not a causal language model ({other})")
    return text_part(config)


def read_model(part: TextPart, source: str, name: str, dtype: str) -> Any:  # noqa: ANN401
    """Load all weights of a model, or of the text model inside; none is made up.

    Known wrappers of trainers are taken off the tensors' names, a head that is lost is tied to the embedding,
    tensors that the model does not have are left out; each is said on stderr.

    Args:
        part: What ``read_part`` found.
        source: A folder or a hub id.
        name: What the user calls it.
        dtype: ``auto``, ``float32`` or ``bfloat16``.

    Raises:
        ModelLoadError: If it cannot be read, or weights are missing or have another shape.
    """
    config = part.config
    with refusing(f"model: cannot load {name}"):
        _require_plain_folder(source, name)
        generation = find_file(source, GENERATION, download=True)
        if generation is not None:
            require_endings(generation)
        files = weight_files(source, config, download=True)
        require_safetensors(source, files, name)
        tensors = read_headers(files, name)
        experts = lost_experts(tensors)
        if experts:
            raise _lacking(name, experts)
        wrapped = wrappers(tensors)
    _dequantise(config)
    room = bounded(
        name,
        num_tensors=len(tensors),
        num_elements=sum(tensor.num_elements for tensor in tensors.values()),
        packed=getattr(config, "quantization_config", None) is not None,
    )
    remedy = f"{CONFIG} or the weights may be damaged, or of two models: get them again"
    with refusing(f"model: cannot load {name}", remedy), room:
        model, info = part.model_class.from_pretrained(
            source,
            config=config,
            dtype=resolve_dtype(config, dtype, tensors),
            use_safetensors=True,
            key_mapping=dict(renames(tensors) if wrapped else {}) | dict(part.renames) or None,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    again = doubles(map(part.name_of, tensors), model.base_model_prefix)
    if again:
        raise ModelLoadError(
            f"model: cannot load {name}: several tensors for the same weight: {shortened(again)}"
        )
    require_weights(model, info, name, part.whole)
    if part.whole:  # whose configuration may say otherwise than its files
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        model.config.tie_word_embeddings = head.weight is embedding.weight
    if wrapped:
        say(name, f"took off the names of its tensors: {shortened(wrapped)}")
    return model


def _dequantise(config: Any) -> None:  # noqa: ANN401
    """Let transformers dequantise what it can without a GPU, whatever it would choose to compute with.

    Raises:
        UnsupportedModelError: If it cannot, with the name of the way in which the files are quantised.
    """
    own = getattr(config, "quantization_config", None)
    if not isinstance(own, dict):
        return
    method = own.get("quant_method")
    if method in _DEQUANTISED:
        own["dequantize"] = True
    elif method not in _OF_PACKAGES:
        raise UnsupportedModelError(
            f"{config.model_type}: not implemented: files that are quantised by {one_line(method, 80)}; "
            "load the model from which they were made"
        )


def _require_plain_folder(source: str, name: str) -> None:
    """Refuse what transformers would load otherwise than as a file's weights."""
    require_no_adapter(source, name)
    if not Path(source).is_dir():
        return
    if any(_TRAINING_SHARD.fullmatch(path.name) for path in Path(source).iterdir()):
        raise ModelLoadError(
            f"model: {name} is a distributed training checkpoint; save the whole model first"
        )
    if (Path(source) / _FILE).is_file() and (Path(source) / INDEX).is_file():
        others = [shard for shard in _shards(Path(source) / INDEX) if shard != _FILE]
        if others:
            say(name, f"takes {_FILE}, not the {len(others)} files of {INDEX}")


def require_weights(
    model: Any,  # noqa: ANN401
    info: Mapping[str, Any],
    name: str,
    whole: str | None = None,
) -> None:
    """Refuse a model whose weights did not all come from its files; a lost head is tied.

    Args:
        model: As transformers loaded it.
        info: What its ``from_pretrained`` gave as ``loading_info``.
        name: What the user calls it.
        whole: The kind of the multimodal model of which it is a part.

    Raises:
        ModelLoadError: Naming the weights, and tensors that might be meant by them.
    """
    surplus = info["unexpected_keys"]
    adapters = sorted(key for key in surplus if ADAPTERS.search(key))
    if adapters:
        raise ModelLoadError(
            f"model: cannot load {name}: {len(adapters)} tensors of an adapter that is not merged: "
            f"{shortened(adapters)}; merge it first (PEFT: merge_and_unload)"
        )
    shapes = {
        key: f"{key} (got {list(got)}, expected {list(wanted)})"
        for key, got, wanted in info["mismatched_keys"]
    }
    if shapes:
        raise ModelLoadError(
            f"model: cannot load {name}: {len(shapes)} tensors of another shape than the model's: "
            f"{shortened(shapes.values())}"
        )
    missing = set(info["missing_keys"])
    if missing and not _tie_head(model, missing, name):
        raise _lacking(name, missing, surplus)
    if surplus:
        others = "not the model's" if whole is None else f"other parts' of {whole} than its text model's"
        say(name, f"{len(surplus)} tensors of its files are {others}, and not used: {shortened(surplus)}")


def _lacking(name: str, missing: Iterable[str], surplus: Iterable[str] = ()) -> ModelLoadError:
    names, others = list(missing), list(surplus)
    return ModelLoadError(
        f"model: cannot load {name}: {len(names)} weights are not in its files: {shortened(names)}"
        + (f"; not used: {len(others)} tensors, {shortened(others)}" if others else "")
    )


def _tie_head(model: Any, missing: set[str], name: str) -> bool:  # noqa: ANN401
    """Tie the output layer to the embedding, and say so, if its weight alone is missing and may be tied."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None or not getattr(model, "_tied_weights_keys", None):
        return False
    names = {key for key, parameter in model.named_parameters() if parameter is head.weight}
    if names != missing or head.weight.shape != embedding.weight.shape:
        return False
    head.weight = embedding.weight
    model.config.tie_word_embeddings = True
    say(name, f"its files lack {shortened(names)}: tied to the embedding")
    return True
