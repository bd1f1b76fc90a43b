"""Loads a model's tokenizer, or says which of its files is damaged."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from treeshare.errors import ModelLoadError, one_line
from treeshare.failures import error_line, is_failure
from treeshare.files import read_file
from treeshare.installation import pip_install
from treeshare.models.checkpoint import say
from treeshare.models.folder import CONFIG, find_file, read_object

_FILE = "tokenizer.json"
_FILES = ("tokenizer*", "vocab.json", "vocab.txt", "*.tiktoken", "spiece.model", "sentencepiece*.model")
"""Patterns of the files of which any makes a tokenizer."""

_PAIR = ("vocab.json", "merges.txt")
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PROCESSORS = "chat_template.json"
_MARK = "\ufeff"
_MAX_BYTES = 256 << 20


def load_tokenizer(source: str) -> Any | None:  # noqa: ANN401
    """The transformers tokenizer of ``source``, a folder or a hub id; None where a folder has none.

    A byte order mark before a chat template is taken off: it would be in every prompt.

    Raises:
        ModelLoadError: If it cannot be loaded or cannot decode; the message names the file, as far as that
            can be told.
    """
    if Path(source).is_dir() and not has_tokenizer(Path(source)):
        return None
    for name in (CONFIG, _SETTINGS[0]):
        path = find_file(source, name, download=True)
        if path is not None:
            _require_tokenizer_class(path)
    _require_readers(source)
    try:
        tokenizer = _made(source)
        tokenizer.decode([0])
        _try_encoding(tokenizer)
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ModelLoadError(
            f"tokenizer: cannot load it from {one_line(source)}: {_culprit(source, error)}"
            f"{error_line(error)}; get its files again"
        ) from error
    template = getattr(tokenizer, "chat_template", None) or _processors_template(source)
    tokenizer.chat_template = _without_marks(template, source)
    return tokenizer


def _made(source: str) -> Any:  # noqa: ANN401
    """The tokenizer as transformers makes it; a byte-level one of two plain files if it knows no other.

    Of one with code of its own, which is not run, what ``tokenizer.json`` says is the whole.
    """
    from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

    if _own_code(source) is not None:
        say(source, f"the code of its tokenizer is not run: {_FILE} is read")
        return PreTrainedTokenizerFast.from_pretrained(source)
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (ValueError, OSError, TypeError):
        is_plain = all(find_file(source, name, download=False) is not None for name in _PAIR)
        others = (_FILE, _SETTINGS[0])  # which would say more
        if not is_plain or any(find_file(source, name, download=False) is not None for name in others):
            raise
    say(source, f"its tokenizer is {' and '.join(_PAIR)} alone: read as GPT-2's byte-level kind")
    return GPT2Tokenizer.from_pretrained(source)


def _require_readers(source: str) -> None:
    """Refuse a tokenizer that is there in a form only which cannot be read here.

    Raises:
        ModelLoadError: Naming the package that reads it, or the code that would be needed.
    """
    if find_file(source, _FILE, download=False) is not None:
        return
    for name in _SENTENCEPIECE:
        path = find_file(source, name, download=False)
        if path is None or importlib.util.find_spec("sentencepiece") is not None:
            continue
        content = read_file(path, "tokenizer", max_bytes=_MAX_BYTES)
        if content[:1] == b"\n":  # a list of pieces; tiktoken's are lines of text
            raise ModelLoadError(
                f"tokenizer: {one_line(source)} has {name} alone, which needs a package: "
                f"{pip_install()} sentencepiece protobuf; or put its {_FILE} there"
            )
    code = _own_code(source)
    if code is not None:
        raise ModelLoadError(
            f"tokenizer: {one_line(source)}: {_SETTINGS[0]}: its own code (auto_map: {code}) is never run; "
            f"put its {_FILE} there"
        )


def _own_code(source: str) -> str | None:
    """The code beside a tokenizer by which alone transformers would make it; None if it needs none."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    path = find_file(source, _SETTINGS[0], download=False)
    settings = {} if path is None else read_object(path)
    code = settings.get("auto_map")
    own = code.get("AutoTokenizer") if isinstance(code, dict) else code
    if not own or tokenizer_class_from_name(str(settings.get("tokenizer_class"))) is not None:
        return None
    return one_line(own, 120)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has files of a tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in _FILES)


def _require_tokenizer_class(path: Path) -> None:
    """Refuse a file that names a class of the library which is no tokenizer: it would be loaded all the same.

    Raises:
        ModelLoadError: Naming the file and the class.
    """
    from transformers import PreTrainedTokenizerBase
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    name = read_object(path).get("tokenizer_class")
    if not isinstance(name, str):
        return
    kind = tokenizer_class_from_name(name)
    is_tokenizer = isinstance(kind, type) and issubclass(kind, PreTrainedTokenizerBase)
    if kind is not None and not is_tokenizer and not hasattr(kind, "_backends"):  # of a library that lacks
        raise ModelLoadError(
            f"tokenizer: {one_line(path)}: tokenizer_class: got {one_line(name, 80)}, "
            "expected the name of a tokenizer's class"
        )


def _try_encoding(tokenizer: Any) -> None:  # noqa: ANN401
    """Encode a letter, for which there may be no token: that is the library's bare ``Exception``."""
    try:
        tokenizer("a")
    except Exception as error:
        if type(error) is not Exception:
            raise


def _culprit(source: str, error: BaseException) -> str:
    """The file of a folder that a tokenizer's failure comes from, for the front of a message."""
    folder = Path(source)
    if not (folder / _FILE).is_file():
        return ""
    from tokenizers import Tokenizer

    try:
        if not isinstance(error, Exception):  # a panic, which can only come from the vocabulary
            return f"{_FILE}: "
        Tokenizer.from_file(str(folder / _FILE))
    except BaseException as own:
        if not is_failure(own):
            raise
        return f"{_FILE}: "
    settings = [name for name in _SETTINGS if (folder / name).is_file()]
    return f"{' or '.join(settings)}: " if settings else ""


def _processors_template(source: str) -> object:
    """The chat template that a multimodal folder has for its processor alone, if it has one."""
    path = find_file(source, _PROCESSORS, download=True)
    return None if path is None else read_object(path).get("chat_template")


def _without_marks(template: object, source: str) -> object:
    """A chat template, or one for each name, without byte order marks.

    Raises:
        ModelLoadError: If it is no text.
    """
    if isinstance(template, dict):
        return {name: _without_marks(part, source) for name, part in template.items()}
    if template is None:
        return None
    if not isinstance(template, str):
        raise ModelLoadError(
            f"tokenizer: chat_template of {one_line(source)}: got {one_line(repr(template), 80)}, "
            "expected text"
        )
    return template.removeprefix(_MARK)
