"""Writes a command's results to the files that the user names."""

from __future__ import annotations

import json
import os
from pathlib import Path  # noqa: TC003  (typer reads the annotation)
from typing import Any

import typer


def check_output(path: Path | None) -> Path | None:
    """Check before the work begins that its result can be written to ``path``.

    Raises:
        typer.BadParameter: If ``path`` is a directory, its parent is not one, or there is no write
        permission.
    """
    if path is None:
        return None
    reason = ""
    if path.is_dir():
        reason = "it is a directory"
    elif not path.parent.is_dir():
        reason = f"{path.parent} is not a directory"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        reason = "no permission, or a read-only disk"
    if reason:
        raise typer.BadParameter(f"cannot write {path}: {reason}")
    return path


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:  # noqa: ANN401
    """Write a result as JSON; see ``files.write_output``."""
    from treeshare.files import write_output

    write_output(path, json.dumps(value, indent=indent).encode() + b"\n")
