"""Checks of a model's folder before libraries read it.

They would wait at a pipe, take all memory at a file without an end, and pass over a generation configuration
that is damaged: then completions do not end.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.errors import DataError, ModelLoadError, one_line
from treeshare.files import read_file, read_text, without_mark
from treeshare.models.tensor_names import shortened

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

CONFIG, GENERATION, _ADAPTER = "config.json", "generation_config.json", "adapter_config.json"

_OBJECTS = (
    CONFIG,
    GENERATION,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)
"""Small files that hold one JSON object each."""

_TEMPLATES = "additional_chat_templates"

_READ = frozenset({".json", ".jinja", ".model", ".safetensors", ".txt"})
"""Ends of the names of files that libraries read."""

_MAX_TEXT_BYTES = 1 << 30
"""Maximum size of such a file, weights apart; the largest tokenizers have tens of megabytes."""

_MAX_DEPTH = 300
"""Levels of lists and objects in such a file: libraries copy them by recursion, two calls a level, and Python
allows 1000 in all. How deep its JSON parser goes depends on its version."""

_MAX_LAYERS = 10_000
_LAYERS = re.compile(r"(?<!per_)layer|depth")
"""Fields of a configuration that count layers; libraries make a list that long before they see a weight."""


def require_readable(folder: Path) -> None:
    """Refuse a folder with an entry that a library could not read to its end, or not as what its name says.

    Args:
        folder: An existing folder.

    Raises:
        ModelLoadError: Naming the file.
    """
    _require_plain_entries(folder)
    if (folder / _TEMPLATES).is_dir():
        _require_plain_entries(folder / _TEMPLATES)
    for name in _OBJECTS:
        if (folder / name).is_file():
            read_object(folder / name)
    for template in sorted([*folder.glob("*.jinja"), *folder.glob(f"{_TEMPLATES}/*.jinja")]):
        try:
            read_text(template, "chat template", max_bytes=_MAX_TEXT_BYTES)
        except DataError as error:
            raise ModelLoadError(str(error)) from error


def find_file(source: str, filename: str, *, download: bool) -> Path | None:
    """A file of a folder or hub id; None where it has none of this name.

    Args:
        source: A folder or a hub id.
        filename: Its name.
        download: Whether what a hub id lacks here may be downloaded.
    """
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


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in one of a model's files.

    Raises:
        ModelLoadError: If it cannot be read or is no JSON object.
    """
    where = f"model: cannot read {one_line(path)}"
    try:
        content = read_file(path, "model", max_bytes=_MAX_TEXT_BYTES)
        if without_mark(content, path, "model") != content:
            raise ModelLoadError(f"{where}: it begins with a byte order mark; save it as UTF-8 without one")
        value = json.loads(content.decode())
        if _depth(value) > _MAX_DEPTH:
            raise RecursionError  # where the parser goes deeper
    except DataError as error:
        raise ModelLoadError(str(error)) from error
    except RecursionError as error:
        raise ModelLoadError(f"{where}: nested too deeply for a model's file; get it again") from error
    except ValueError as error:
        raise ModelLoadError(f"{where}: not JSON in UTF-8 ({one_line(error)}); get it again") from error
    if not isinstance(value, dict):
        got = "null" if value is None else f"a {type(value).__name__}"
        raise ModelLoadError(f"{where}: got {got}, expected a JSON object; get it again")
    return value


def _depth(value: object) -> int:
    """Levels of lists and objects inside one another."""
    depth, level = 0, [value]
    while inner := [part for part in level if isinstance(part, (list, dict))]:
        depth += 1
        level = [part for outer in inner for part in (outer.values() if isinstance(outer, dict) else outer)]
    return depth


def require_layers(config: Path) -> None:
    """Refuse a configuration with more layers than any model has: libraries would build them for hours.

    Raises:
        ModelLoadError: Naming the field.
    """
    for name, number in integers(read_object(config), _LAYERS):
        if number > _MAX_LAYERS:
            raise ModelLoadError(
                f"model: {one_line(config)}: {one_line(name)}: got {number:.3g}, "
                f"expected at most {_MAX_LAYERS} layers"
            )


def integers(values: Mapping[Any, Any], names: re.Pattern[str]) -> Iterator[tuple[str, int]]:
    """Fields of a configuration, and of the dictionaries inside, that are integers and have such a name."""
    parts = [values]
    while parts:
        for name, value in parts.pop().items():
            if isinstance(value, dict):
                parts.append(value)
            elif isinstance(value, int) and names.search(str(name)):
                yield str(name), value


def require_endings(generation: Path) -> None:
    """Refuse a generation configuration whose end-of-sequence tokens are no token ids.

    Raises:
        ModelLoadError: If ``eos_token_id`` is neither an integer nor a list of integers nor null.
    """
    ids = read_object(generation).get("eos_token_id")
    listed = ids if isinstance(ids, list) else [] if ids is None else [ids]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in listed):
        raise ModelLoadError(
            f"model: {one_line(generation)}: eos_token_id: got {one_line(json.dumps(ids), 80)}, "
            "expected a token id, or a list of them"
        )


def require_no_adapter(source: str, name: str) -> None:
    """Refuse an adapter, alone or beside its model.

    Raises:
        ModelLoadError: If there is one.
    """
    if find_file(source, _ADAPTER, download=True) is not None:
        raise ModelLoadError(
            f"model: {name} contains an adapter ({_ADAPTER}); give its base model as the model, "
            "and this folder as lora= or --lora"
        )


def require_safetensors(source: str, files: Sequence[Path], name: str) -> None:
    """Refuse a folder whose weights are pickles alone, which may run code when they are read."""
    others = [] if files or not Path(source).is_dir() else [path.name for path in Path(source).glob("*.bin")]
    if others:
        raise ModelLoadError(
            f"model: {name} has its weights in {shortened(others)} alone, which is not read, because such "
            "files can contain programs; save the model as safetensors (transformers: save_pretrained)"
        )


def require_known_code(path: Path, name: str) -> None:
    """Refuse a configuration of a kind for which there is code beside it alone."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = read_object(path)
    kind, code = own.get("model_type"), own.get("auto_map")
    if code and kind not in CONFIG_MAPPING:
        parts = [str(part) for part in code.values()] if isinstance(code, dict) else [str(code)]
        named = one_line(shortened(parts), 200)
        raise ModelLoadError(
            f"model: cannot load {name}: {CONFIG}: transformers has no model of the kind "
            f"{one_line(kind, 80)}; the folder's own code (auto_map: {named}) is never run"
        )


def _require_plain_entries(folder: Path) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise ModelLoadError(f"model: cannot read {one_line(folder)}: {error.strerror}") from error
    for entry in entries:
        path, is_read = Path(entry.path), Path(entry.name).suffix.lower() in _READ
        try:
            found = entry.stat()
        except OSError as error:
            if is_read:
                kind = "a link that leads nowhere: " if entry.is_symlink() else ""
                raise ModelLoadError(
                    f"model: cannot read {one_line(path)}: {kind}{error.strerror}"
                ) from error
            continue
        is_file, is_folder = stat.S_ISREG(found.st_mode), stat.S_ISDIR(found.st_mode)
        if not is_file and (is_read or not is_folder):
            kind = "a folder" if is_folder else "a pipe or a device"
            raise ModelLoadError(f"model: {one_line(path)} is {kind}, expected a regular file")
        if is_read and path.suffix.lower() != ".safetensors" and found.st_size > _MAX_TEXT_BYTES:
            raise ModelLoadError(
                f"model: {one_line(path)} is larger than {_MAX_TEXT_BYTES} bytes, the maximum"
            )
