"""Files from outside and files of results: how treeshare opens, reads, parses and replaces them."""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import json
import os
import secrets
import stat
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from treeshare.errors import DataError, TreeshareError, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader

MAX_BYTES = 4 << 30
"""A larger file is not read into memory."""

MAX_LINE_BYTES = 256 << 20
"""A longer line is not a record."""

MAX_RATIO, MIN_UNPACKED_BYTES = 100, 64 << 20
"""A gzipped file may unpack to this many times its size, or to this many bytes, whichever is more."""

_NO_FOLDER_SYNC = (errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP)
"""Errors of directories that cannot be synced: on network file systems, or without permission to read."""

_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_MARKS = {  # UTF-32 first: its mark begins with UTF-16's
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_LINE_ENDS = {end: f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
_CHUNK_BYTES = 1 << 20


# -- opening and reading ------------------------------------------------------------------------------------


def open_regular(path: str | Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file; refuse a pipe, a device or a directory without blocking on it.

    Args:
        path: The file. With ``os.O_NOFOLLOW`` in ``flags``, a symbolic link is refused too.
        flags: As for ``os.open``.

    Returns:
        A file descriptor that child processes do not inherit.

    Raises:
        OSError: If ``path`` cannot be opened, is no name of a file, or is not a regular file.
    """
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o666)
    except ValueError as error:  # a NUL character, or text that the file system's encoding lacks
        raise OSError(errno.EINVAL, "not a possible file name") from error
    except OSError as error:
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise OSError(errno.ELOOP, "it is a symbolic link") from error
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def opened(path: str | Path, what: str) -> Iterator[BufferedReader]:
    """A regular file, open for reading inside.

    Args:
        path: The file.
        what: What messages call it.

    Raises:
        DataError: If it cannot be opened or read, is not a regular file, or does not fit into memory.
    """
    try:
        with open(open_regular(path), "rb") as file:
            yield file
    except TreeshareError:  # some are OSErrors
        raise
    except OSError as error:
        raise DataError(
            f"{what}: cannot read {one_line(path)}: {error.strerror or one_line(error)}"
        ) from error
    except MemoryError as error:
        raise DataError(f"{what}: {one_line(path)} does not fit into memory") from error


def read_file(path: str | Path, what: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file.

    Args:
        path: The file.
        what: What messages call it.
        max_bytes: A larger file is refused before it is read.

    Raises:
        DataError: If it cannot be read, is not a regular file, or is too large; one line.
    """
    with opened(path, what) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1) if size <= max_bytes else b""
        while size < len(content) <= max_bytes:  # it grows, or its file system does not tell sizes
            size = len(content)
            content += file.read(_CHUNK_BYTES)
    if max(size, len(content)) > max_bytes:
        raise DataError(f"{what}: {one_line(path)} is larger than {max_bytes} bytes, the maximum")
    return content


def read_packed(path: str | Path, what: str, *, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file, unpacked if it is gzipped.

    Args:
        path: The file.
        what: What messages call it.
        max_bytes: Maximum size, packed and unpacked.

    Raises:
        DataError: As ``read_file``; or if it is damaged, or unpacks to more than ``MAX_RATIO`` times its
            size.
    """
    packed = read_file(path, what, max_bytes=max_bytes)
    if not packed.startswith(b"\x1f\x8b"):
        return packed
    limit = min(max_bytes, max(MIN_UNPACKED_BYTES, MAX_RATIO * len(packed)))
    content = io.BytesIO()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            while part := file.read(_CHUNK_BYTES):
                content.write(part)
                if content.tell() > limit:
                    raise DataError(
                        f"{what}: {one_line(path)} unpacks to more than {limit} bytes, the maximum for its "
                        f"{len(packed)}; unpack it first if you trust it"
                    )
        return content.getvalue()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{what}: cannot read {one_line(path)}: {one_line(error)}") from error
    except MemoryError as error:
        raise DataError(f"{what}: {one_line(path)} does not fit into memory") from error


def read_text(path: str | Path, what: str, *, max_bytes: int = MAX_BYTES) -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        DataError: As ``read_file``; or if it is in another encoding, which is named where its mark says it.
    """
    content = without_mark(read_file(path, what, max_bytes=max_bytes), path, what)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{what}: {one_line(path)}: byte {error.start} is not UTF-8; save it as UTF-8"
        ) from error


def read_lines(path: str | Path, what: str) -> Iterator[bytes]:
    r"""The lines of a regular file, each with its ``\n``, read one by one.

    Args:
        path: The file.
        what: What messages call it.

    Raises:
        DataError: If it cannot be read, is not a regular file, or a line is longer than ``MAX_LINE_BYTES``.
    """
    with opened(path, what) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise DataError(
                    f"{what}: {one_line(path)}, line {number}: longer than {MAX_LINE_BYTES} bytes, "
                    "the maximum"
                )
            yield line


def without_mark(content: bytes, path: str | Path, what: str) -> bytes:
    """The beginning of a text file without a byte order mark.

    Raises:
        DataError: If it is in UTF-16 or UTF-32.
    """
    encoding = next((name for mark, name in _OTHER_MARKS.items() if content.startswith(mark)), None)
    if encoding is None and b"\x00" in content[:2]:  # no text begins with NUL: UTF-16 without a mark
        encoding = "UTF-16"
    if encoding is not None:
        raise DataError(f"{what}: {one_line(path)} is in {encoding}, expected UTF-8; save it as UTF-8")
    return content.removeprefix(_UTF8_MARK)


# -- JSON ---------------------------------------------------------------------------------------------------


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

    Text is written as UTF-8, but for U+0085, U+2028 and U+2029, which some readers take for line ends and
    which are escaped. If a string has a lone surrogate, which UTF-8 cannot encode, all text is escaped to
    ASCII.

    Raises:
        ValueError: If JSON cannot express ``value``, or a number is not finite.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
        for end, escape in _LINE_ENDS.items():  # they stand in strings only
            text = text.replace(end, escape)  # ``translate`` would look up each character
        try:
            return text.encode()
        except UnicodeEncodeError:
            return json.dumps(value, allow_nan=False, indent=indent).encode()
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a finite number")


# -- writing ------------------------------------------------------------------------------------------------


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the file at ``path`` by ``content``, completely or not at all, and make it durable.

    For files inside a folder of ours: a link is replaced, not followed.

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


def write_output(path: Path, content: bytes) -> None:
    """Write a result to where the user says: atomically to a regular file, directly to a pipe or a device.

    A link is followed, so that what it leads to gets the content.

    Raises:
        DataError: If ``path`` cannot be written.
    """
    target = Path(os.path.realpath(path))
    if target.is_file() or not target.exists():
        write_atomically(target, content)
        return
    try:
        target.write_bytes(content)
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
