"""The manifest: everything that decides a run's tokens, and what it was run with."""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from treeshare.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_BYTES = 16 << 20
"""A manifest larger than this is not ours."""

_INFORMATIVE = ("n", "created", "versions", "model")


class Manifest(BaseModel):
    """A run's parameters.

    Attributes:
        format: Version of this file's layout.
        task: Name of the task.
        data: Where its problems came from.
        task_ids: The problems, in order.
        prompts_sha256: Of all prompts' token ids.
        model: What the user named; informative, the weights decide.
        model_sha256: Of the weights' names, shapes, dtypes and bytes.
        dtype: Of the computation.
        sampling: ``SamplingParams`` without ``n`` and ``seed``.
        n: Completions per problem; may grow.
        seed: Run seed.
        versions: Of Python and the packages that compute; informative.
        created: When the run began, UTC; informative.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    task: str
    data: str
    task_ids: list[str]
    prompts_sha256: str
    model: str
    model_sha256: str
    dtype: str
    sampling: dict[str, Any]
    n: PositiveInt
    seed: NonNegativeInt
    versions: dict[str, str]
    created: str

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            DataError: If it is missing, unreadable or not a manifest; the message says where.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"manifest: {path}: larger than {MAX_BYTES} bytes, this is not a manifest")
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"manifest: cannot read {path}: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"manifest: {path}: {where}: {first['msg']}") from error

    def write(self, path: Path) -> None:
        """Write atomically: the file is the old one or the new one, whole, whatever happens.

        Raises:
            DataError: If the folder cannot be written.
        """
        write_atomically(path, self.model_dump_json(indent=2).encode() + b"\n")

    def differences(self, other: Manifest) -> list[str]:
        """What decides tokens and differs: ``name: run has X, command has Y``, one entry each."""
        found = []
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in _INFORMATIVE or mine == theirs:
                continue
            if isinstance(mine, dict):
                found += [
                    f"{key}: run has {mine.get(key)!r}, command has {theirs.get(key)!r}"
                    for key in sorted(mine.keys() | theirs.keys())
                    if mine.get(key) != theirs.get(key)
                ]
            elif isinstance(mine, list):
                found.append(f"{name}: run has {len(mine)} problems, command has {len(theirs)} or others")
            else:
                found.append(f"{name}: run has {_short(mine)}, command has {_short(theirs)}")
        return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:12] + "…'"


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content`` on disk, whole or not at all.

    Raises:
        DataError: If it cannot be written.
    """
    partial = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            partial = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o644)
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if partial is not None:
            partial.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def prompts_sha256(prompts: Iterable[Sequence[int]]) -> str:
    """SHA-256 over all prompts' lengths and token ids."""
    digest = hashlib.sha256()
    for ids in prompts:
        tokens = np.asarray(ids, dtype="<i8")
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes())
    return digest.hexdigest()


def current_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute."""
    versions = {name: metadata.version(name) for name in ("treeshare", "torch", "transformers", "numpy")}
    return {"python": platform.python_version(), **versions}
