"""Verdicts on disk, so that an interrupted evaluation can continue."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import threading
from importlib import metadata
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.evals.check_result import CheckResult
from treeshare.evals.sandbox import PACKAGES, Verdict
from treeshare.files import open_regular, read_lines

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType
    from typing import Self

VERDICTS_NAME = "verdicts.jsonl"

_FORMAT = 4
"""Raised when a verdict's meaning changes, so that older ones are not reused."""


@functools.cache
def _package_versions() -> str:
    found = {
        package.name: package.version for package in metadata.distributions() if package.name in PACKAGES
    }
    return json.dumps(found, sort_keys=True)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    key: str
    verdict: str
    detail: str
    passed_public: bool | None = None
    signature: str | None = None


class VerdictCache:
    """Verdicts by what they depend on, in a file of JSON lines that only grows.

    A line is written whole, by one call, as soon as its verdict is there: being killed loses none. A torn
    line is passed over, and its program checked again. Several processes may share the file; each
    sees what was there when it began.

    Whoever can write the file can write verdicts that nothing was run for; ``num_taken`` says how many
    counted.

    Args:
        path: The file; made if missing, refused if it is a symbolic link.
        recheck: Leave aside what the file holds. New verdicts on the same are added after it, and hold from
            then on.

    Attributes:
        num_taken: Verdicts of the file that ``get`` gave.

    Raises:
        DataError: If the file cannot be read or written, or is something else.
    """

    def __init__(self, path: Path, *, recheck: bool = False) -> None:
        self.num_taken = 0
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, CheckResult] = {}
        try:
            self._file = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW)
        except OSError as error:
            raise DataError(f"verdicts: cannot open {one_line(path)}: {error.strerror}; delete it") from error
        try:
            line, is_empty = b"\n", True
            for line in read_lines(path, "verdicts"):
                is_empty &= not line.strip()
                self._take(line)
            if not is_empty and not self._known:
                raise DataError(
                    f"verdicts: {one_line(path)} contains none, expected JSON lines of treeshare; delete it"
                )
            if not line.endswith(b"\n"):
                self._append(b"\n")
        except BaseException:
            os.close(self._file)
            raise
        if recheck:
            self._known.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._known)

    def close(self) -> None:
        """Close the file; nothing can be added then."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    @staticmethod
    def key(text: str) -> str:
        """The name of the verdict that depends on ``text``, this Python, its packages, and the format."""
        version = f"{_FORMAT}\n{platform.python_version()}\n{_package_versions()}\n"
        return hashlib.sha256((version + text).encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, key: str) -> CheckResult | None:
        """The verdict, if it is known. Safe to call from several threads."""
        with self._lock:
            result = self._known.get(key)
            self.num_taken += result is not None
        return result

    def add(self, key: str, result: CheckResult) -> None:
        """Remember a verdict. Safe to call from several threads.

        Raises:
            DataError: If it cannot be written.
        """
        detail = result.detail.encode("utf-8", "backslashreplace").decode()
        line: dict[str, str | bool] = {"key": key, "verdict": str(result.verdict), "detail": detail}
        optional = {"passed_public": result.passed_public, "signature": result.signature}
        line |= {name: value for name, value in optional.items() if value is not None}
        with self._lock:
            if key not in self._known:
                self._append(json.dumps(line).encode() + b"\n")
                self._known[key] = result

    def _take(self, line: bytes) -> None:
        try:
            read = _Line.model_validate_json(line)
            self._known[read.key] = CheckResult(
                verdict=Verdict(read.verdict),
                detail=read.detail,
                passed_public=read.passed_public,
                signature=read.signature,
            )
        except (ValidationError, ValueError):
            return

    def _append(self, content: bytes) -> None:
        try:
            written = os.write(self._file, content)
        except OSError as error:
            raise DataError(f"verdicts: cannot write {self._path}: {error.strerror}") from error
        if written < len(content):
            raise DataError(f"verdicts: cannot write {self._path}: no space left")
