"""File operations of a run: open regular files only, replace files atomically, make them durable."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import stat
from typing import TYPE_CHECKING, Any, NoReturn

from treeshare.errors import DataError, one_line

if TYPE_CHECKING:
    from pathlib import Path

_NO_FOLDER_SYNC = (errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP)
"""Errors of directories that cannot be synced: on network file systems, or without permission to read."""


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file; refuse a pipe, a device or a directory without blocking on it.

    Args:
        path: The file. With ``os.O_NOFOLLOW`` in ``flags``, a symbolic link is refused too.
        flags: As for ``os.open``.

    Returns:
        A file descriptor that child processes do not inherit.

    Raises:
        OSError: If ``path`` cannot be opened or is not a regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def parse_json(content: bytes) -> Any:  # noqa: ANN401
    """Parse a JSON value, strictly: UTF-8, no NaN, no infinity.

    Unlike pydantic's parser it accepts escaped lone surrogates, which ``dump_json`` writes.

    Raises:
        ValueError: If ``content`` is not JSON or is nested too deeply.
    """
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dump_json(value: object, indent: int | None = None) -> bytes:
    """Return a value as JSON; the same value always gives the same bytes.

    Text is written as UTF-8. If a string has a lone surrogate, which UTF-8 cannot encode, all text is escaped
    to ASCII.

    Raises:
        ValueError: If JSON cannot express ``value``, or a number is not finite.
    """
    try:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode()
        except UnicodeEncodeError:
            return json.dumps(value, allow_nan=False, indent=indent).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` by ``content``, completely or not at all, and make it durable.

    Raises:
        DataError: If ``path`` cannot be written; its old content is still there.
    """
    partial = path.parent / f".{path.name}-{secrets.token_hex(4)}"
    try:
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise DataError(f"cannot write {one_line(path)}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make a directory's entries durable, if its file system can do that.

    Raises:
        OSError: If the disk fails.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def make_folders(path: Path) -> None:
    """Make a directory and its missing parents, and make them durable.

    Raises:
        OSError: If a directory cannot be made.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        if path.parent == path:
            break
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
