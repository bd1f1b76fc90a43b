"""Files as a run needs them: regular ones only, replaced whole, and durable."""

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
"""Folders that cannot be synced: network file systems, folders that we may not read."""


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file; a pipe, a device or a folder in its place is refused without waiting for it.

    Args:
        path: The file. With ``os.O_NOFOLLOW`` among the flags it may not be a symbolic link either.
        flags: As for ``os.open``.

    Returns:
        A descriptor, not inherited by programs that are started.

    Raises:
        OSError: If it cannot be opened or is not a regular file.
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
    """Parse one JSON value, strictly: UTF-8, no NaN, no infinity.

    Unlike pydantic's parser it takes escaped lone surrogates, which ``dump_json`` writes.

    Raises:
        ValueError: If it is not JSON, or too deeply nested.
    """
    try:
        return json.loads(content.decode(), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def dump_json(value: object, indent: int | None = None) -> bytes:
    """Write a JSON value; the same value always gives the same bytes.

    Text stays readable UTF-8. A value with a lone surrogate, which UTF-8 cannot express, is escaped to ASCII.

    Raises:
        ValueError: If it holds a number that is not finite, or what JSON cannot express.
    """
    try:
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent).encode()
        except UnicodeEncodeError:
            return json.dumps(value, allow_nan=False, indent=indent).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` on disk, whole or not at all, durably.

    Raises:
        DataError: If it cannot be written; what was there before is still there.
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
    """Make a folder's entries durable, where its file system can do that.

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
    """Make a folder and its missing parents, durably.

    Raises:
        OSError: If that cannot be done.
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
