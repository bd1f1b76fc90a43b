"""A folder's or a hub repository's safetensors as a transformers model: every weight of it, or none.

transformers makes up a weight that the files lack, at random, and says so in a table that nobody sees. Here
such a model is refused, and what is done beyond the files' own words is said on stderr.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treeshare.errors import ModelLoadError, UnsupportedModelError, one_line
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


def error_line(error: BaseException) -> str:
    """The first line of an error's text."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def read_config(source: str, name: str) -> Any:  # noqa: ANN401
    """The transformers configuration of ``source``, a folder or hub id that the user calls ``name``.

    Raises:
        ModelLoadError: If there is none that can be read.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(f"model: cannot load {name}: {error_line(error)}") from error


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
    from safetensors import SafetensorError, safe_open

    found: dict[str, TensorInfo] = {}
    twice = []
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  # no mapping
                    part = opened.get_slice(key)
                    count = int(torch.Size(part.get_shape()).numel())
                    if key in found:
                        twice.append(key)
                    found[key] = TensorInfo(file=file.name, dtype=part.get_dtype(), num_elements=count)
        except (OSError, SafetensorError) as error:
            raise ModelLoadError(f"model: cannot load {name}: {file.name}: {error_line(error)}") from error
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
    for filename in [own] if own else [_FILE, _INDEX]:
        path = _file(source, filename, download=download)
        if path is None:
            continue
        if not filename.endswith(".index.json"):
            return [path]
        names = _shards(path)
        shards = [_file(source, shard, download=download) for shard in names]
        lost = [shard for shard, there in zip(names, shards, strict=True) if there is None]
        if lost and download:
            raise ModelLoadError(
                f"model: cannot load {source}: {filename} names files that are not there: {shortened(lost)}"
            )
        return [shard for shard in shards if shard is not None]
    return []


def _shards(index: Path) -> Sequence[str]:
    """The files that an index names."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelLoadError(f"model: cannot read {index}: {error_line(error)}") from error
    wrong = [str(name) for name in names if not isinstance(name, str) or not name.endswith(".safetensors")]
    outside = [name for name in names if name not in wrong and Path(name).name != name]
    if wrong or outside or not names:
        got = shortened(wrong + outside) or "no file"
        raise ModelLoadError(f"model: {index}: got {got}, expected names of .safetensors files beside it")
    return names


def _file(source: str, filename: str, *, download: bool) -> Path | None:
    """A file of a folder or hub id; None where it has none of this name."""
    if Path(source).is_dir():
        path = Path(source) / filename
        return path if path.is_file() else None
    from transformers.utils import cached_file

    found = cached_file(
        source,
        filename,
        local_files_only=not download,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


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
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    config = read_config(source, name)
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{config.model_type}: not implemented: encoder-decoder architecture")
    try:
        _require_plain_folder(source, name)
        tensors = read_headers(weight_files(source, config, download=True), name)
        experts = lost_experts(tensors)
        if experts:
            raise _lacking(name, experts)
        wrapped = wrappers(tensors)
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
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        if isinstance(error, (UnsupportedModelError, ModelLoadError)):
            raise
        raise ModelLoadError(f"model: cannot load {name}: {error_line(error)}") from error
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
    if _file(source, _ADAPTER, download=True) is not None:
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
