"""A folder's or a hub repository's safetensors as a transformers model: every weight of it, or none.

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

from treeshare.errors import ModelLoadError, UnsupportedModelError, one_line
from treeshare.failures import refusing
from treeshare.models.construction import bounded
from treeshare.models.folder import (
    CONFIG,
    GENERATION,
    find_file,
    read_object,
    require_endings,
    require_layers,
    require_readable,
)
from treeshare.models.support import other_kind
from treeshare.models.tensor_names import ADAPTERS, doubles, lost_experts, renames, shortened, wrappers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_FILE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"

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
            f"model: cannot load {name}: tensors in two of its files, and which is right is not known: "
            f"{shortened(twice)}"
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
    for filename in [own] if own else [_FILE, _INDEX]:
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
                f"model: cannot load {one_line(source)}: {filename} names files that are not there: "
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


def read_model(source: str, name: str, dtype: str) -> Any:  # noqa: ANN401
    """Load all weights of a model; none is made up.

    Known wrappers of trainers are taken off the tensors' names, a head that is lost is tied to the embedding,
    tensors that the model does not have are left out; each is said on stderr.

    Args:
        source: A folder or a hub id.
        name: What the user calls it.
        dtype: ``auto``, ``float32`` or ``bfloat16``.

    Raises:
        ModelLoadError: If it cannot be read, or weights are missing or have another shape.
        UnsupportedModelError: If it is no causal language model on its own.
    """
    from transformers import AutoModelForCausalLM

    config = read_config(source, name)
    if other := other_kind(config):
        raise UnsupportedModelError(f"{config.model_type}: not a causal language model ({other})")
    with refusing(f"model: cannot load {name}"):
        _require_plain_folder(source, name)
        generation = find_file(source, GENERATION, download=True)
        if generation is not None:
            require_endings(generation)
        tensors = read_headers(weight_files(source, config, download=True), name)
        experts = lost_experts(tensors)
        if experts:
            raise _lacking(name, experts)
        wrapped = wrappers(tensors)
    room = bounded(
        name,
        num_tensors=len(tensors),
        num_elements=sum(tensor.num_elements for tensor in tensors.values()),
        packed=getattr(config, "quantization_config", None) is not None,
    )
    remedy = f"{CONFIG} or the weights may be damaged, or of two models: get them again"
    with refusing(f"model: cannot load {name}", remedy), room:
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=resolve_dtype(config, dtype, tensors),
            use_safetensors=True,
            trust_remote_code=False,
            key_mapping=renames(tensors) if wrapped else None,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            output_loading_info=True,
        )
    again = doubles(tensors, model.base_model_prefix)
    if again:
        raise ModelLoadError(
            f"model: cannot load {name}: tensors that mean the same weight: {shortened(again)}"
        )
    require_weights(model, info, name)
    if wrapped:
        say(name, f"took off the names of its tensors: {shortened(wrapped)}")
    return model


def _require_plain_folder(source: str, name: str) -> None:
    """Refuse what transformers would load otherwise than as a file's weights."""
    if find_file(source, _ADAPTER, download=True) is not None:
        raise ModelLoadError(
            f"model: {name} holds an adapter ({_ADAPTER}), which is not implemented; "
            "merge it into its model first (PEFT: merge_and_unload)"
        )
    if not Path(source).is_dir():
        return
    if any(_TRAINING_SHARD.fullmatch(path.name) for path in Path(source).iterdir()):
        raise ModelLoadError(
            f"model: {name} is a distributed training checkpoint; save the whole model first"
        )
    if (Path(source) / _FILE).is_file() and (Path(source) / _INDEX).is_file():
        others = [shard for shard in _shards(Path(source) / _INDEX) if shard != _FILE]
        if others:
            say(name, f"takes {_FILE}, not the {len(others)} files of {_INDEX}")


def require_weights(model: Any, info: Mapping[str, Any], name: str) -> None:  # noqa: ANN401
    """Refuse a model whose weights did not all come from its files; a lost head is tied.

    Args:
        model: As transformers loaded it.
        info: What its ``from_pretrained`` gave as ``loading_info``.
        name: What the user calls it.

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
        say(
            name,
            f"{len(surplus)} tensors of its files are not the model's, and not used: {shortened(surplus)}",
        )


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
