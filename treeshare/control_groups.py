"""The memory that Linux's control groups leave to this process: a container's limit, and those around it.

A group's limit holds for all groups below it, so each group from the process's own up to the top counts.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, kw_only=True)
class _Version:
    """How one version of control groups names things.

    Attributes:
        kind: Type of its file system.
        places: Where it is usually mounted.
        limits: Files with a limit in bytes.
        usage: The file with the bytes in use, caches of files among them.
        cache: In ``memory.stat``: bytes of such caches that the kernel gives up before it kills.
    """

    kind: str
    places: tuple[str, ...]
    limits: tuple[str, ...]
    usage: str
    cache: str


_NO_LIMIT = 1 << 60
"""Version 1 writes a number near 2 ** 63 where there is no limit."""

_VERSIONS = (
    _Version(
        kind="cgroup2",
        places=("/sys/fs/cgroup", "/sys/fs/cgroup/unified"),
        limits=("memory.max", "memory.high"),
        usage="memory.current",
        cache="inactive_file",
    ),
    _Version(
        kind="cgroup",
        places=("/sys/fs/cgroup/memory",),
        limits=("memory.limit_in_bytes",),
        usage="memory.usage_in_bytes",
        cache="total_inactive_file",
    ),
)


@dataclass(frozen=True, kw_only=True)
class MemoryLimit:
    """A group's limit.

    Attributes:
        limit_bytes: What its processes may use together.
        free_bytes: What is left of it, caches that can be given up included.
    """

    limit_bytes: int
    free_bytes: int


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """The group that leaves least to this process; None where no group is limited.

    Args:
        root: Where the file system begins (tests).
    """
    found = [
        _limit(folder, version)
        for version in _VERSIONS
        for folder in dict.fromkeys(_folders(version, root))
        if folder.is_dir()
    ]
    return min(
        (limit for limit in found if limit is not None), key=lambda limit: limit.free_bytes, default=None
    )


def _limit(folder: Path, version: _Version) -> MemoryLimit | None:
    """The limit of one group; None where it has none, or its files say nothing."""
    limits = [limit for name in version.limits if (limit := _number(folder / name)) is not None]
    if not limits:
        return None
    used = (_number(folder / version.usage) or 0) - _cache(folder / "memory.stat", version.cache)
    return MemoryLimit(limit_bytes=min(limits), free_bytes=max(min(limits) - max(used, 0), 0))


def _folders(version: _Version, root: Path) -> Iterator[Path]:
    """The process's group, and those above it, wherever they are mounted."""
    own = _own_path(version, root)
    mounts = [(place, "/") for place in version.places] + list(_mounts(version, root))
    for place, top in mounts:
        # Within a container the mount's top may be the group whose path is written as the host sees it.
        inside = own.removeprefix(top) if top != "/" and own.startswith(top) else own
        folder = root / place.lstrip("/")
        yield folder
        for part in inside.strip("/").split("/"):
            folder = folder / part
            if part == "..":  # a group beside the namespace's own
                break
            yield folder


def _own_path(version: _Version, root: Path) -> str:
    """The path of the process's group; the top where it is not known."""
    for line in _lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        is_it = number == "0" if version.kind == "cgroup2" else "memory" in controllers.split(",")
        if is_it:
            return path
    return "/"


def _mounts(version: _Version, root: Path) -> Iterator[tuple[str, str]]:
    """Where it is mounted, and which group is the mount's top."""
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        fields, kinds = mount.split(" "), system.split(" ")
        has_memory = version.kind == "cgroup2" or "memory" in kinds[-1].split(",")
        if len(fields) > 4 and kinds[0] == version.kind and has_memory:
            yield fields[4], fields[3]


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, ValueError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _number(path: Path) -> int | None:
    """A file's number; None for ``max``, for version 1's number that means the same, or without a file."""
    text = "".join(_lines(path)[:1]).strip()
    return int(text) if text.isdecimal() and int(text) < _NO_LIMIT else None


def _cache(path: Path, name: str) -> int:
    for line in _lines(path):
        key, _, value = line.partition(" ")
        if key == name and value.isdecimal():
            return int(value)
    return 0
