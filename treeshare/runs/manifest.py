"""The manifest: everything that decides a run's tokens, and what it was run with."""

from __future__ import annotations

import hashlib
import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.runs.files import dump_json, open_regular, parse_json, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MAX_BYTES = 16 << 20
"""A manifest larger than this is not ours."""

_INFORMATIVE = ("data", "model", "n", "fold_cost", "versions", "workers", "created")
_MAX_DIFFERENCES = 8


class Manifest(BaseModel):
    """A run's parameters.

    Attributes:
        format: Version of this file's layout.
        task: Name of the task.
        data: Where its problems came from; informative, the prompts decide.
        problems_sha256: Of the problems as the task read them, where the caller gives it.
        prompting: How prompts were made around the problems: worked examples, their choice, chat template.
        task_ids: The problems, in order; ``--limit`` is their number.
        prompts_sha256: Of all prompts' token ids.
        model: What the user named; informative, the weights decide.
        model_sha256: Of the weights' names, shapes, dtypes and bytes.
        dtype: Of the computation.
        sharing: ``tree``, ``one-level`` or ``none``; changes bfloat16 roundings.
        fold_cost: What decided which shared segments are nodes, ``config.FoldCost`` by its fields: a run that
            goes on keeps it, and so its tree. Empty for the defaults.
        sampling: ``SamplingParams`` without ``n`` and ``seed``.
        n: Completions per problem; the only thing that may grow.
        seed: Run seed.
        versions: Of Python and the packages that compute, and which kernels and how many threads;
            informative.
        workers: Which processes computed, where the run was begun on several; informative.
        created: When the run began, UTC; informative.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    task: str
    data: str
    problems_sha256: str = ""
    prompting: dict[str, bool | int | str] = {}
    task_ids: list[str]
    prompts_sha256: str
    model: str
    model_sha256: str
    dtype: str
    sharing: str = "tree"
    fold_cost: dict[Literal["launch_cost", "merge_cost", "token_cost", "max_rows"], NonNegativeInt] = {}
    sampling: dict[str, bool | int | FiniteFloat | str | list[int] | list[str] | None]
    n: PositiveInt
    seed: NonNegativeInt
    versions: dict[str, str]
    workers: str = ""
    created: str

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            DataError: If it is missing, unreadable or not a manifest; the message says where.
        """
        where = f"manifest: {one_line(path)}"
        try:
            with open(open_regular(path, os.O_RDONLY), "rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DataError(f"manifest: cannot read {one_line(path)}: {error.strerror}") from error
        if len(content) > MAX_BYTES:
            raise DataError(f"{where}: larger than {MAX_BYTES} bytes, this is not a manifest")
        try:
            return cls.model_validate(parse_json(content), strict=True)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            field = one_line(".".join(map(str, first["loc"])), 60) or "the file"
            raise DataError(f"{where}: {field}: {one_line(first['msg'])}") from error
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {one_line(error)}") from error

    def write(self, path: Path) -> None:
        """Write atomically: the file is the old one or the new one, whole, whatever happens.

        Raises:
            DataError: If the folder cannot be written.
        """
        write_atomically(path, dump_json(self.model_dump(), indent=2) + b"\n")

    def differences(self, other: Manifest) -> list[str]:
        """What decides tokens and differs, one line each: ``temperature: run has 0.8, command has 0.7``.

        ``n`` and what is informative are left out; after eight entries the rest is only counted.

        Args:
            other: The command's; this is the run's.
        """
        found = []
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in _INFORMATIVE or mine == theirs:
                continue
            if isinstance(mine, dict):
                found += _differing_keys(mine, theirs)
            elif isinstance(mine, list):
                found.append(f"{name}: run has {len(mine)} problems, command has {len(theirs)} or others")
            else:
                found.append(f"{name}: run has {_short(mine)}, command has {_short(theirs)}")
        if len(found) > _MAX_DIFFERENCES:
            found[_MAX_DIFFERENCES:] = [f"and {len(found) - _MAX_DIFFERENCES} more"]
        return found

    def version_warning(self, other: Manifest) -> str:
        """One line on versions that differ, or the empty string; other versions may round differently.

        Args:
            other: The command's; this is the run's.
        """
        found = _differing_keys(self.versions, other.versions)
        return f"versions differ, new completions may too: {'; '.join(found[:8])}" if found else ""


def _differing_keys(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    return [
        f"{one_line(key, 40)}: run has {_short(mine.get(key))}, command has {_short(theirs.get(key))}"
        for key in sorted(mine.keys() | theirs.keys())
        if mine.get(key) != theirs.get(key)
    ]


def _short(value: object) -> str:
    text = one_line(repr(value))
    return text if len(text) <= 40 else text[:12] + "…" + text[-1]


def prompts_sha256(prompts: Iterable[Sequence[int]]) -> str:
    """SHA-256 over all prompts' lengths and token ids."""
    digest = hashlib.sha256()
    for ids in prompts:
        tokens = np.asarray(ids, dtype="<i8")
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes())
    return digest.hexdigest()


def current_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute; ``unknown`` for what is not installed."""
    versions = {"python": platform.python_version()}
    for name in ("treeshare", "torch", "transformers", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions
