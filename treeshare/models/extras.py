"""What a user gives beside a model: a tokenizer, a revision, a chat template, an adapter."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.errors import ConfigError, ModelLoadError, one_line
from treeshare.failures import refusing
from treeshare.files import read_text
from treeshare.installation import how_to_add
from treeshare.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import nn

_MAX_TEMPLATE_BYTES = 16 << 20

_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelExtras:
    """What is given beside a model.

    Attributes:
        tokenizer: A folder, a hub id or a transformers tokenizer, instead of the model's own.
        revision: Branch, tag or commit of a hub id.
        chat_template: A Jinja template, or its file, instead of the tokenizer's own.
        lora: A folder with a PEFT adapter, which is merged into the weights.
    """

    tokenizer: Any | None = None
    revision: str | None = None
    chat_template: str | os.PathLike[str] | None = None
    lora: str | os.PathLike[str] | None = None

    @property
    def is_files(self) -> bool:
        """Whether another process could read all of it, too."""
        return self.tokenizer is None or isinstance(self.tokenizer, str | os.PathLike)


NO_EXTRAS = ModelExtras()


def chosen_tokenizer(source: str | None, extras: ModelExtras) -> Any | None:  # noqa: ANN401
    """The tokenizer to use: the one that was given, else that of ``source``; None where there is none.

    Raises:
        ConfigError: If what was given is no tokenizer, or the chat template no text.
        DataError: If the template's file cannot be read.
        ModelLoadError: If the tokenizer cannot be loaded.
    """
    given = extras.tokenizer
    if isinstance(given, str | os.PathLike):
        tokenizer = load_tokenizer(os.fspath(given))
        if tokenizer is None:
            raise ModelLoadError(
                f"tokenizer: got the folder {one_line(given)}, expected one with a tokenizer"
            )
    elif given is not None:
        if not (callable(given) and hasattr(given, "decode")):
            raise ConfigError.of(
                "tokenizer", got=given, expected="a folder, a hub id or a transformers tokenizer"
            )
        tokenizer = given
    else:
        tokenizer = None if source is None else load_tokenizer(source)
    return _with_template(tokenizer, extras.chat_template)


def _with_template(tokenizer: Any | None, template: str | os.PathLike[str] | None) -> Any | None:  # noqa: ANN401
    if template is None:
        return tokenizer
    if tokenizer is None:
        raise ConfigError("chat_template: the model has no tokenizer; give one as tokenizer=")
    if not isinstance(template, str | os.PathLike):
        raise ConfigError.of("chat_template", got=template, expected="a Jinja template, or its file")
    is_text = isinstance(template, str) and ("{" in template or "\n" in template)
    text = (
        str(template)
        if is_text
        else read_text(Path(template), "chat template", max_bytes=_MAX_TEMPLATE_BYTES)
    )
    tokenizer = copy.copy(tokenizer)  # the caller's stays as it is
    tokenizer.chat_template = text.removeprefix("\ufeff")
    return tokenizer


def with_adapter(model: nn.Module, extras: ModelExtras) -> nn.Module:
    """The model with its adapter merged into the weights by ``peft``'s own arithmetic, if there is one.

    Raises:
        ConfigError: If ``peft`` is not installed, or the folder is none.
        ModelLoadError: If the adapter cannot be read or is for another model.
    """
    if extras.lora is None:
        return model
    folder = _adapter_folder(extras.lora)
    try:
        from peft import PeftModel, set_peft_model_state_dict
        from peft.utils.save_and_load import load_peft_weights
    except ImportError as error:
        raise ConfigError(f"lora: needs the package peft; install it with: {how_to_add('lora')}") from error
    remedy = "it must be an adapter of this model"
    with refusing(f"lora: cannot merge {one_line(folder)}", remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, at names that peft still uses
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=False, low_cpu_mem_usage=False)
        found = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
        _require_all(folder, found.missing_keys, found.unexpected_keys)
        merged: nn.Module = adapted.merge_and_unload(safe_merge=True)
    return merged


def _require_all(folder: Path, missing: list[str], unused: list[str]) -> None:
    """Refuse an adapter whose file lacks weights, which ``peft`` makes up, or has some that it does not use.

    Args:
        folder: The adapter's.
        missing: Names of the adapted model's that the file does not have, those of the model itself too.
        unused: Names of the file's that the adapted model does not have.

    Raises:
        ModelLoadError: If there are any of the adapter's.
    """
    missing = [name for name in missing if "default" in name.split(".")]  # peft's name for the adapter
    for names, fault in ((missing, "lacks"), (unused, "has, and nothing uses,")):
        if names:
            shown = ", ".join(name.removeprefix("base_model.model.") for name in names[:2])
            more = f" and {len(names) - 2} more" if len(names) > 2 else ""
            raise ModelLoadError(
                f"lora: {one_line(folder)}: {_ADAPTER_WEIGHTS} {fault} {one_line(shown, 160)}{more}; "
                f"{_ADAPTER} must be the file's own"
            )


def _adapter_folder(given: object) -> Path:
    if not isinstance(given, str | os.PathLike):
        raise ConfigError.of("lora", got=given, expected="a folder with a PEFT adapter")
    folder = Path(given).expanduser()
    for name in (_ADAPTER, _ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ModelLoadError(
                f"lora: got {one_line(given)}, expected a folder with {_ADAPTER} and {_ADAPTER_WEIGHTS}, "
                "as PEFT's save_pretrained writes them"
            )
    return folder
