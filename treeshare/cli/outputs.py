"""Writes a command's results to the files that the user names."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
from pathlib import Path  # noqa: TC003  (typer reads the annotation)
from typing import Any, TextIO

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


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that ``stream``, by default stdout, is; None where it is none."""
    stream = stream or sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def fitted(text: str, stream: TextIO | None = None) -> str:
    """A line, wrapped between words where a terminal is too narrow for it; elsewhere as it is."""
    width = terminal_width(stream)
    if width is None or len(text) <= width:
        return text
    return textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
