"""GGUF files, converted once into folders of safetensors in the user's cache.

A folder holds the file's numbers in one dtype: ``float32`` as they are dequantised, ``bfloat16`` rounded. It
is named by the file's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare import files
from treeshare.errors import DataError, ModelLoadError, one_line
from treeshare.failures import refusing
from treeshare.models.cache import made_once, model_folder, writing
from treeshare.models.checkpoint import DTYPES, require_weights, say
from treeshare.models.construction import bounded, quietly
from treeshare.models.gguf_file import join, read_parts, require_numbers
from treeshare.models.gguf_meaning import require_meaning, require_metadata
from treeshare.models.gguf_rope import ROPE_TENSORS
from treeshare.models.tensor_names import shortened

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    import torch

    from treeshare.models.gguf_file import GgufHeader

_FORMAT = 2
"""Version of the converted folders; raise it when a conversion changes.

Version 1 rounded everything to bfloat16, and kept what transformers had made up for missing tensors.
"""

_ALONE = "model.gguf"
_OF_A_LAYER = re.compile(r"blk\.(\d{1,6})\.(?!attn_rot_embd|rope_)")
_OUTSIDE_LAYERS = ("output", "token_embd", "position_embd", "per_layer_")
_F32, _F16 = 0, 1
"""Kinds of numbers, as ggml counts them."""


def converted_folder(gguf: Path, name: str, dtype: str) -> Path:
    """The folder with the numbers of ``gguf``; made on first use, never half made.

    Args:
        gguf: An existing file.
        name: What the folder's name begins with.
        dtype: ``float32`` or ``bfloat16``; ``auto`` is float32 for a file of float32 or float16 numbers.

    Raises:
        ModelLoadError: If the file cannot be read, lacks weights or means what transformers leaves out.
    """
    parts = read_parts(gguf)
    require_numbers(parts)
    digest = _digest(parts)
    if dtype == "auto":
        dtype = _own_dtype(parts)
    name = one_line(name)
    folder = model_folder(name, f"{digest[:16]}-v{_FORMAT}-{dtype}")

    def fill(partial: Path) -> None:
        alone = partial / "alone"  # what lies beside the file is not the model's
        with writing(partial.parent):
            alone.mkdir()
            if len(parts) == 1:
                (alone / _ALONE).symlink_to(gguf.absolute())
            else:
                join(parts, alone / _ALONE)
        with refusing(f"model: cannot read {one_line(gguf)}", "get this file again"):
            model, tokenizer = _read(parts, alone, name, dtype)
        with writing(partial.parent):
            shutil.rmtree(alone)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)

    return made_once(folder, name, f"converting {gguf.name}", fill)


def gguf_config(gguf: Path, dtype: str) -> tuple[Any, torch.dtype]:
    """The transformers configuration of a file, and the dtype that its model gets; reads no numbers.

    Raises:
        ModelLoadError: If its metadata cannot be read, or mean what transformers leaves out.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.integrations.gguf import read_gguf_metadata

    parts = read_parts(gguf)
    require_numbers(parts)
    if dtype == "auto":
        dtype = _own_dtype(parts)
    with refusing(f"model: cannot read {one_line(gguf)}", "get this file again"), _as_one(parts) as whole:
        metadata, tensors = read_gguf_metadata(str(whole))
        require_metadata(metadata, tensors, gguf)
        config = AutoConfig.from_pretrained(str(whole.parent), gguf_file=whole.name, trust_remote_code=False)
        require_meaning(metadata, tensors, _rope(parts), config, gguf)
        name = one_line(gguf.stem)
        with _as_large_as(parts, name), quietly(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        _surplus(model, tensors, name, metadata["general.architecture"])
    return config, DTYPES[dtype]


def _as_large_as(parts: Sequence[GgufHeader], name: str) -> AbstractContextManager[None]:
    """Inside, a model is built that is not much larger than a file."""
    tensors = [tensor for part in parts for tensor in part.tensors]
    numbers = sum(math.prod(tensor.shape) for tensor in tensors)
    return bounded(name, num_tensors=len(tensors), num_elements=numbers)


@contextlib.contextmanager
def _as_one(parts: Sequence[GgufHeader]) -> Iterator[Path]:
    """A file with the metadata and tensors' names of all parts; of several, without their numbers."""
    if len(parts) == 1:
        yield parts[0].path
        return
    with tempfile.TemporaryDirectory() as place:
        join(parts, Path(place) / _ALONE, with_data=False)
        yield Path(place) / _ALONE


def _rope(parts: Sequence[GgufHeader]) -> dict[str, list[float]]:
    """The numbers of a rope's tensors."""
    return {
        tensor.name: part.floats(tensor.name)
        for part in parts
        for tensor in part.tensors
        if tensor.name in ROPE_TENSORS
    }


def _digest(parts: Sequence[GgufHeader]) -> str:
    """SHA-256 of a model's files, one after the other.

    Raises:
        ModelLoadError: If one cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for part in parts:
            with files.opened(part.path, "model") as file:
                if len(parts) == 1:
                    return hashlib.file_digest(file, "sha256").hexdigest()
                digest.update(hashlib.file_digest(file, "sha256").digest())
    except DataError as error:
        raise ModelLoadError(str(error)) from error
    return digest.hexdigest()


def _own_dtype(parts: Sequence[GgufHeader]) -> str:
    """The dtype of a file's numbers: float32 if it holds float32 and float16 alone, else bfloat16."""
    kinds = {tensor.kind for part in parts for tensor in part.tensors}
    return "float32" if kinds <= {_F32, _F16} else "bfloat16"


def _read(parts: Sequence[GgufHeader], alone: Path, name: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer of a file, which the folder ``alone`` has, and nothing else."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.integrations.gguf import read_gguf_metadata

    gguf = parts[0].path
    metadata, tensors = read_gguf_metadata(str(alone / _ALONE))
    require_metadata(metadata, tensors, gguf)
    where = {"pretrained_model_name_or_path": str(alone), "gguf_file": _ALONE, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(**where)
    unknown = require_meaning(metadata, tensors, _rope(parts), config, gguf)
    with (
        _as_large_as(parts, name),
        contextlib.redirect_stderr(io.StringIO()),  # the library's progress bar would fill logs
    ):
        model, info = AutoModelForCausalLM.from_pretrained(
            **where,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    surplus = _surplus(model, tensors, name, metadata["general.architecture"])
    require_weights(model, info | {"unexpected_keys": surplus}, name)
    if unknown:
        say(name, f"{len(unknown)} metadata of the file are not used: {shortened(unknown)}")
    model = model.to(DTYPES[dtype])
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(**where)


def _is_used(name: str, num_layers: int) -> bool:
    """Whether llama.cpp computes with a tensor: those of layers, of the embedding and of the head."""
    found = _OF_A_LAYER.match(name)
    return int(found[1]) < num_layers if found else name.startswith(_OUTSIDE_LAYERS)


def _surplus(model: Any, tensors: Collection[str], name: str, architecture: str) -> set[str]:  # noqa: ANN401
    """The tensors of a file that are no weights of a model, and without an effect.

    Raises:
        ModelLoadError: If the file lacks tensors, half of an expert too, which transformers fills with zeros,
            or has some that llama.cpp computes with and transformers leaves out.
    """
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    meant = {
        key if key.endswith((".weight", ".bias")) else f"{key}.weight"  # a mixture's experts, in one
        for key in get_gguf_hf_weights_map(model, processor)
    }
    lost = meant - set(tensors) - ({"output.weight"} if model.config.tie_word_embeddings else set())
    if lost:
        raise ModelLoadError(
            f"model: cannot load {name}: {len(lost)} tensors are not in the file: {shortened(lost)}"
        )
    surplus = set(tensors) - meant
    used = {key for key in surplus if _is_used(key, model.config.num_hidden_layers)}
    if used:
        raise ModelLoadError(
            f"model: cannot load {name}: not implemented from a GGUF file of this architecture: "
            f"{len(used)} tensors, {shortened(used)}; use the model's safetensors instead"
        )
    return surplus
