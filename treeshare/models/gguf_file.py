"""The bytes of a GGUF file: what its header says, whether all of it is there, and parts put together.

A large model comes as several files, of which the first has the metadata and each some of the tensors.
"""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import shutil
import struct
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare import files
from treeshare.errors import DataError, ModelLoadError, one_line
from treeshare.installation import how_to_add
from treeshare.models.tensor_names import shortened

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_LENGTH = struct.Struct("<Q")
"""Bytes of a string, which stand before it."""

_ALIGNMENT = 32

_STRING, _ARRAY = 8, 9
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Kinds of metadata that have a fixed size, as ``struct`` calls them."""

_MAX_DIMENSIONS, _MAX_ITEMS = 8, 1 << 24
_F32 = 0

_PART = re.compile(r"(?P<front>.*-)(?P<no>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A tensor's entry in a header.

    Attributes:
        name: Its name.
        shape: Rows first.
        kind: Of its numbers, as ggml counts them.
        offset: Of its bytes in the data.
        num_bytes: How many those are.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class GgufHeader:
    """What stands before a file's data.

    Attributes:
        path: The file.
        version: Of the format.
        values: Metadata that are one value each.
        spans: Where in the file each metadata's key, kind and value are.
        tensors: In their order.
        data_start: Where the data begin.
        num_bytes: Of the file.
    """

    path: Path
    version: int
    values: dict[str, Any]
    spans: dict[str, tuple[int, int]]
    tensors: tuple[GgufTensor, ...]
    data_start: int
    num_bytes: int

    def floats(self, name: str) -> list[float]:
        """The numbers of a tensor in float32.

        Raises:
            ModelLoadError: If it has others.
        """
        (tensor,) = (tensor for tensor in self.tensors if tensor.name == name)
        if tensor.kind != _F32:
            raise ModelLoadError(f"model: {one_line(self.path)}: {name}: expected float32 numbers")
        count, start = tensor.num_bytes // 4, self.data_start + tensor.offset
        return [float(x) for x in np.fromfile(self.path, np.dtype("<f4"), count, offset=start)]


def read_header(path: Path) -> GgufHeader:
    """The header of an existing file, all of whose tensors are inside it.

    Raises:
        ModelLoadError: If it cannot be read, is no GGUF file, or ends before its tensors do.
    """
    where = f"model: cannot read {one_line(path)}"
    try:
        with files.opened(path, "model") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ModelLoadError(
                    f"{where}: it does not begin with {_MAGIC.decode()}, as a GGUF file does; "
                    "get this file again"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Reader(content).header(path)
    except DataError as error:
        raise ModelLoadError(str(error)) from error
    except _Damage as error:
        raise ModelLoadError(f"{where}: {error}; get this file again") from error


def require_numbers(parts: Sequence[GgufHeader]) -> None:
    """Refuse kinds of numbers that gguf-py does not dequantise.

    Raises:
        ModelLoadError: Naming them.
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    unread = []
    for kind in sorted({tensor.kind for part in parts for tensor in part.tensors}):
        named = GGMLQuantizationType(kind)
        try:
            dequantize(np.zeros((1, GGML_QUANT_SIZES[named][1]), np.uint8), named)
        except NotImplementedError:
            unread.append(named.name)
    if unread:
        raise ModelLoadError(
            f"model: {one_line(parts[0].path)}: not implemented: numbers of the kind {', '.join(unread)}; "
            "use a file of another quantisation"
        )


class _Damage(Exception):
    """What is wrong with a file's bytes."""


class _Reader:
    """Reads values from a file's bytes, one after the other."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._place = content, 0

    def header(self, path: Path) -> GgufHeader:
        self._take(len(_MAGIC))
        version, num_tensors, num_values = self._unpack("IQQ")
        if version not in _VERSIONS:
            raise _Damage(f"version {version} of the format, expected {' or '.join(map(str, _VERSIONS))}")
        if max(num_tensors, num_values) > len(self._content):
            raise _Damage(f"{num_tensors} tensors and {num_values} metadata in {len(self._content)} bytes")
        values: dict[str, Any] = {}
        spans: dict[str, tuple[int, int]] = {}
        for _ in range(num_values):
            start, key = self._place, self._string()
            if key in spans:
                raise _Damage(f"metadata {one_line(key, 80)} twice")
            value = self._value(*self._unpack("I"))
            spans[key] = (start, self._place)
            if value is not None:
                values[key] = value
        alignment = values.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
            raise _Damage(f"general.alignment {one_line(str(alignment), 40)}")
        tensors = tuple(self._tensor() for _ in range(num_tensors))
        names = [tensor.name for tensor in tensors]
        if twice := _twice(names):
            raise _Damage(f"tensors twice: {shortened(twice)}")
        data_start = -(-self._place // alignment) * alignment
        end = max((data_start + tensor.offset + tensor.num_bytes for tensor in tensors), default=0)
        if end > len(self._content):
            raise _Damage(f"it ends after {len(self._content)} bytes, its tensors after {end}")
        return GgufHeader(
            path=path,
            version=version,
            values=values,
            spans=spans,
            tensors=tensors,
            data_start=data_start,
            num_bytes=len(self._content),
        )

    def _take(self, count: int) -> bytes:
        if count > len(self._content) - self._place:
            raise _Damage("it ends inside its header")
        start, self._place = self._place, self._place + count
        return self._content[start : self._place]

    def _unpack(self, kinds: str) -> tuple[Any, ...]:
        return struct.unpack("<" + kinds, self._take(struct.calcsize("<" + kinds)))

    def _string(self) -> str:
        (length,) = self._unpack("Q")
        try:
            return self._take(length).decode()
        except UnicodeDecodeError as error:
            raise _Damage("a name that is not UTF-8") from error

    def _value(self, kind: int) -> Any:  # noqa: ANN401
        """A value; None for a list, which is passed over."""
        if kind in _SCALARS:
            return self._unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise _Damage(f"metadata of the unknown kind {kind}")
        item, count = self._unpack("IQ")
        if item in _SCALARS:
            self._take(count * struct.calcsize("<" + _SCALARS[item]))
        elif item == _STRING and count <= _MAX_ITEMS:
            self._skip_strings(count)
        else:
            raise _Damage(f"a list of {count} items of kind {item}")
        return None

    def _skip_strings(self, count: int) -> None:
        """Pass over a list; a vocabulary has 100,000 items, so none of them is copied."""
        content, place, last = self._content, self._place, len(self._content) - _LENGTH.size
        for _ in range(count):
            if place > last:
                raise _Damage("it ends inside its header")
            place += _LENGTH.size + _LENGTH.unpack_from(content, place)[0]
        self._place = place
        self._take(0)

    def _tensor(self) -> GgufTensor:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string()
        (num_dimensions,) = self._unpack("I")
        if num_dimensions > _MAX_DIMENSIONS:
            raise _Damage(f"tensor {one_line(name, 80)} of {num_dimensions} dimensions")
        shape = self._unpack(f"{num_dimensions}Q")
        kind, offset = self._unpack("IQ")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (KeyError, ValueError) as error:
            raise _Damage(f"tensor {one_line(name, 80)} of the unknown kind {kind}") from error
        count = 1
        for length in shape:
            count *= length
        return GgufTensor(
            name=name,
            shape=tuple(reversed(shape)),
            kind=kind,
            offset=offset,
            num_bytes=count // block * size,
        )


def missing_libraries() -> list[str]:
    """What transformers reads these files with, as far as it is not installed."""
    return [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]


def _require_libraries() -> None:
    """Check for what transformers reads these files with.

    Raises:
        ModelLoadError: If it is not installed.
    """
    if missing := missing_libraries():
        raise ModelLoadError(
            f"model: a GGUF file needs {' and '.join(missing)}; install with: {how_to_add('gguf')}"
        )


def read_parts(path: Path) -> list[GgufHeader]:
    """The headers of a model's files, in their order, given any of them.

    Raises:
        ModelLoadError: If one cannot be read, is missing, or does not belong to the others.
    """
    _require_libraries()
    header = read_header(path)
    count = header.values.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [header]
    named = _PART.fullmatch(path.name)
    if named is None or int(named["count"]) != count:
        raise ModelLoadError(
            f"model: {one_line(path)} is part {header.values.get('split.no', 0) + 1} of {count}; "
            f"expected a name that ends in -00001-of-{count:05}.gguf, by which the others are found: "
            "name them as they were"
        )
    paths = [
        path.with_name(f"{named['front']}{number:05}-of-{named['count']}{named['end']}")
        for number in range(1, count + 1)
    ]
    lost = [part.name for part in paths if not part.exists()]
    if lost:
        raise ModelLoadError(
            f"model: {one_line(path)} is one of {count} parts, and beside it are missing: {shortened(lost)}"
        )
    parts = [read_header(part) for part in paths]
    for number, part in enumerate(parts):
        own = (part.values.get("split.no"), part.values.get("split.count"))
        if own != (number, count):
            raise ModelLoadError(
                f"model: {one_line(part.path)} says that it is part {own[0]} of {own[1]}, counted from 0, "
                f"expected {number} of {count}; get it again"
            )
    _require_tensors(parts)
    return parts


def _require_tensors(parts: Sequence[GgufHeader]) -> None:
    names = [tensor.name for part in parts for tensor in part.tensors]
    wanted = parts[0].values.get("split.tensors.count", len(names))
    twice = _twice(names)
    if twice or wanted != len(names):
        got = f"tensors twice: {shortened(twice)}" if twice else f"{len(names)} tensors, expected {wanted}"
        raise ModelLoadError(f"model: {one_line(parts[0].path)}: its parts have {got}; get them again")


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]


def join(parts: Sequence[GgufHeader], target: Path, *, with_data: bool = True) -> None:
    """Write the parts of a model as one file.

    Args:
        parts: As ``read_parts`` gives them.
        target: A new file.
        with_data: Whether tensors have their numbers; else there is a hole in their place, without memory.
    """
    first = parts[0]
    alignment = first.values.get("general.alignment", _ALIGNMENT)
    starts, size = [], 0  # of each part's data in those of the whole
    for part in parts:
        starts.append(size)
        size += -(-(part.num_bytes - part.data_start) // alignment) * alignment
    kept = [span for key, span in first.spans.items() if not key.startswith("split.")]
    count = sum(len(part.tensors) for part in parts)
    with target.open("xb") as out:
        out.write(_MAGIC + struct.pack("<IQQ", first.version, count, len(kept)))
        with os.fdopen(files.open_regular(first.path), "rb") as source:
            for start, end in kept:
                source.seek(start)
                out.write(source.read(end - start))
        for part, start in zip(parts, starts, strict=True):
            out.writelines(_entries(part.tensors, start))
        data_start = -(-out.tell() // alignment) * alignment
        if with_data:
            for part, start in zip(parts, starts, strict=True):
                out.seek(data_start + start)
                with os.fdopen(files.open_regular(part.path), "rb") as source:
                    source.seek(part.data_start)
                    shutil.copyfileobj(source, out, 1 << 24)
        out.truncate(data_start + size)


def _entries(tensors: Iterable[GgufTensor], start: int) -> Iterable[bytes]:
    for tensor in tensors:
        name, shape = tensor.name.encode(), tensor.shape[::-1]
        yield struct.pack("<Q", len(name)) + name
        yield struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.kind, start + tensor.offset)
