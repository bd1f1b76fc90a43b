"""GGUF files, converted once into folders of safetensors in the user's cache.

A folder holds the file's numbers in one dtype: ``float32`` as they are dequantised, ``bfloat16`` rounded. It
is named by the file's bytes; a list of its own files says whether it is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from treeshare.errors import ModelLoadError
from treeshare.models.checkpoint import DTYPES, error_line, require_weights, say
from treeshare.models.gguf_meaning import require_meaning, require_metadata
from treeshare.models.tensor_names import shortened

_FORMAT = 2
"""Version of the converted folders; raise it when a conversion changes.

Version 1 rounded everything to bfloat16, and kept what transformers had made up for missing tensors.
"""

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
    try:
        with gguf.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelLoadError(f"model: cannot read {gguf}: {error.strerror}") from error
    if dtype == "auto":
        dtype = _own_dtype(gguf)
    folder = cache_dir() / "models" / f"{name}-{digest[:16]}-v{_FORMAT}-{dtype}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    except OSError as error:
        raise ModelLoadError(f"model cache: cannot write {folder.parent}: {error.strerror}") from error
    say(name, f"converting {gguf.name} into {folder} (once) ...")
    try:
        _convert(gguf, partial, name, dtype)
        _write_list(partial)
        partial.chmod(0o755)
        if not _is_whole(folder):  # else another process was faster
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    except ModelLoadError:
        raise
    except Exception as error:  # the libraries' readers raise whatever a damaged file leads them to
        raise ModelLoadError(f"model: cannot read {gguf}: {error_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


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
        sizes = json.loads((folder / _LIST).read_text(encoding="utf-8"))
        return bool(sizes) and all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _write_list(folder: Path) -> None:
    """Make the folder's files durable, then list them."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[path.name] = path.stat().st_size
    (folder / _LIST).write_text(json.dumps(sizes), encoding="utf-8")


def _convert(gguf: Path, folder: Path, name: str, dtype: str) -> None:
    """Write model and tokenizer of ``gguf`` into ``folder``."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
    from transformers.integrations.gguf import read_gguf_metadata

    metadata, tensors = read_gguf_metadata(str(gguf))
    require_metadata(metadata, gguf)
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    unknown = require_meaning(metadata, tensors, AutoConfig.from_pretrained(**where), gguf)
    with contextlib.redirect_stderr(io.StringIO()):  # the library's progress bar would fill logs
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
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


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
