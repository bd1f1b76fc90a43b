"""Files that the user names to get a command's results."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import typer


def check_output(path: Path | None) -> Path | None:
    """Refuse, before the work begins, a path to which its result could not be written.

    Raises:
        typer.BadParameter: If it is a folder, lies in none, or may not be written.
    """
    if path is None:
        return None
    reason = ""
    if path.is_dir():
        reason = "it is a folder"
    elif not path.parent.is_dir():
        reason = f"{path.parent} is no folder"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "no permission, or a read-only disk"
    if reason:
        raise typer.BadParameter(f"cannot write {path}: {reason}")
    return path


def write_output(path: Path, content: bytes) -> None:
    """Write a result: whole or not at all, unless ``path`` is a pipe or a device, which is written to.

    Raises:
        DataError: If it cannot be written.
    """
    from treeshare.errors import DataError, one_line
    from treeshare.runs.files import write_atomically

    if path.is_file() or not path.exists():
        write_atomically(Path(os.path.realpath(path)), content)  # a symbolic link stays one
        return
    try:
        path.write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write {one_line(path)}: {error.strerror}") from error


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:  # noqa: ANN401
    """Write a result as JSON; see ``write_output``."""
    write_output(path, json.dumps(value, indent=indent).encode() + b"\n")
