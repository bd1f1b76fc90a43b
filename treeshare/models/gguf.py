"""GGUF files, converted once into folders of safetensors in the user's cache.

A folder holds the file's numbers in one dtype: ``float32`` as they are dequantised, ``bfloat16`` rounded. It
is named by the file's bytes; a list of its own files says whether it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from treeshare import files
from treeshare.errors import DataError, ModelLoadError, one_line
from treeshare.failures import refusing
from treeshare.models.checkpoint import DTYPES, require_weights, say
from treeshare.models.construction import bounded
from treeshare.models.gguf_meaning import require_meaning, require_metadata
from treeshare.models.tensor_names import shortened

_FORMAT = 2
"""Version of the converted folders; raise it when a conversion changes.

Version 1 rounded everything to bfloat16, and kept what transformers had made up for missing tensors.
"""

_MAGIC, _ALONE = b"GGUF", "model.gguf"

_MAX_NAME_BYTES = 100
"""Of the file's name in the folder's; names of folders have 255 bytes at most."""

_LIST = "converted.json"
"""The file that says which others belong to a converted folder, with their sizes; written last."""


def cache_dir() -> Path:
    """The user's cache for converted models: ``$XDG_CACHE_HOME/treeshare`` or ``~/.cache/treeshare``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "treeshare"


def converted_folder(gguf: Path, name: str, dtype: str) -> Path:
    """The folder with the numbers of ``gguf``; made on first use, never half made.

    Args:
        gguf: An existing file.
        name: What the folder's name begins with.
        dtype: ``float32`` or ``bfloat16``; ``auto`` is float32 for a file of float32 or float16 numbers.

    Raises:
        ModelLoadError: If the file cannot be read, lacks weights or means what transformers leaves out.
    """
    digest = _digest(gguf)
    if dtype == "auto":
        dtype = _own_dtype(gguf)
    name = one_line(name).encode(errors="replace")[:_MAX_NAME_BYTES].decode(errors="ignore")
    folder = cache_dir() / "models" / f"{name}-{digest[:16]}-v{_FORMAT}-{dtype}"
    if _is_whole(folder):
        return folder
    with _writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    say(name, f"converting {gguf.name} into {folder} (once) ...")
    try:
        with _writing(folder.parent):
            alone = partial / "alone"  # what lies beside the file is not the model's
            alone.mkdir()
            (alone / _ALONE).symlink_to(gguf.absolute())
        with refusing(f"model: cannot read {one_line(gguf)}", "get this file again"):
            model, tokenizer = _read(gguf, alone, name, dtype)
        with _writing(folder.parent):
            shutil.rmtree(alone)
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            _write_list(partial)
            partial.chmod(0o755)
            if not _is_whole(folder):  # else another process was faster
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _writing(place: Path) -> contextlib.AbstractContextManager[None]:
    """Failures inside are of the cache's disk: full, read-only, not the user's."""
    return refusing(
        f"model cache: cannot write {place}", "make room there, or set XDG_CACHE_HOME to another folder"
    )


def _digest(gguf: Path) -> str:
    """SHA-256 of a GGUF file; of another file nothing but the beginning is read.

    Raises:
        ModelLoadError: If it cannot be read, is no regular file or no GGUF file.
    """
    try:
        with files.opened(gguf, "model") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ModelLoadError(
                    f"model: cannot read {one_line(gguf)}: it does not begin with {_MAGIC.decode()}, "
                    "as a GGUF file does; get this file again"
                )
            file.seek(0)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except DataError as error:
        raise ModelLoadError(str(error)) from error


def _own_dtype(gguf: Path) -> str:
    """The dtype of a file's numbers: float32 if it holds float32 and float16 alone, else bfloat16."""
    import torch
    from transformers.integrations.gguf import GgufHeader

    try:
        own = GgufHeader.from_file(str(gguf)).dtype
    except Exception:  # an unknown quantisation, or a damaged file that converting will refuse
        own = None
    return "float32" if own in (torch.float32, torch.float16) else "bfloat16"


def _is_whole(folder: Path) -> bool:
    """Whether a converted folder has all its files, in the sizes they had."""
    try:
        sizes = files.parse_json(files.read_file(folder / _LIST, "model cache"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write_list(folder: Path) -> None:
    """Make the folder's files durable, then list them."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        descriptor = files.open_regular(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sizes[path.name] = path.stat().st_size
    files.write_atomically(folder / _LIST, files.dump_json(sizes))


def _read(gguf: Path, alone: Path, name: str, dtype: str) -> tuple[Any, Any]:
    """Model and tokenizer of ``gguf``, which the folder ``alone`` has a link to, and nothing else."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.integrations.gguf import GgufHeader, read_gguf_metadata

    metadata, tensors = read_gguf_metadata(str(alone / _ALONE))
    require_metadata(metadata, tensors, gguf)
    where = {"pretrained_model_name_or_path": str(alone), "gguf_file": _ALONE, "trust_remote_code": False}
    unknown = require_meaning(metadata, tensors, AutoConfig.from_pretrained(**where), gguf)
    numbers = sum(math.prod(tensor.shape) for tensor in GgufHeader.from_file(str(alone / _ALONE)).tensors)
    with (
        bounded(name, num_tensors=len(tensors), num_elements=numbers),
        contextlib.redirect_stderr(io.StringIO()),  # the library's progress bar would fill logs
    ):
        model, info = AutoModelForCausalLM.from_pretrained(
            **where,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    _require_tensors(model, info, tensors, name, metadata["general.architecture"])
    if unknown:
        say(name, f"{len(unknown)} metadata of the file are not used: {shortened(unknown)}")
    model = model.to(DTYPES[dtype])
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(**where)


def _require_tensors(
    model: Any,  # noqa: ANN401
    info: dict[str, Any],
    tensors: tuple[str, ...],
    name: str,
    architecture: str,
) -> None:
    """Refuse a model for which the file lacks tensors; transformers fills half of an expert with zeros."""
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    if not is_gguf_arch_supported(architecture):
        processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
        meant = get_gguf_hf_weights_map(model, processor)
        tied = {"output.weight"} if model.config.tie_word_embeddings else set()
        lost = set(meant) - set(tensors) - tied
        if lost:
            raise ModelLoadError(
                f"model: cannot load {name}: {len(lost)} tensors are not in the file: {shortened(lost)}"
            )
        info = info | {"unexpected_keys": set(tensors) - set(meant)}
    require_weights(model, info, name)
