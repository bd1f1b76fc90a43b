"""Reading a task's records: JSON lines, plain or gzipped, each checked against the task's fields."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from treeshare.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

Fields = TypeVar("Fields", bound=BaseModel)


def read_json_lines(path: Path, kind: type[Fields]) -> list[Fields]:
    """Read a ``.jsonl`` or ``.jsonl.gz`` file.

    Raises:
        DataError: If it is missing, unreadable, empty, or a line is not as ``kind`` asks; one line that says
            where.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"data: cannot read {path}: {reason}") from error
    records = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            where = f"{path}, line {number}" + (f", {field}" if field else "")
            raise DataError(f"data: {where}: {first['msg']}") from error
    if not records:
        raise DataError(f"data: {path} holds no record, expected one JSON object per line")
    return records
