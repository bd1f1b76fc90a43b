"""The manifest: everything that determines a run's tokens, and what the run was made with."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.files import dump_json, parse_json, read_file, write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

MAX_BYTES = 16 << 20
"""A larger file is not a manifest."""

_INFORMATIVE = ("data", "model", "n", "fold_cost", "versions", "workers", "created")
_MAX_DIFFERENCES = 8


class Manifest(BaseModel):
    """A run's parameters.

    Fields marked "informative" may differ when a run is resumed; all others must be equal, except ``n``.

    Attributes:
        format: Version of the file format.
        task: Name of the task.
        task_options: What was chosen of it, by name.
        data: Where the problems came from; informative, as ``prompts_sha256`` identifies the prompts.
        problems_sha256: SHA-256 of the problems as the task read them; empty if not known.
        prompting: How prompts were made from the problems: worked examples, their choice, chat template.
        task_ids: Task ids of the problems, in order; ``--limit`` is their number.
        prompts_sha256: SHA-256 of all prompts' token ids.
        model: The model's name as the user gave it; informative, as ``model_sha256`` identifies the weights.
        model_sha256: SHA-256 of the weights' names, shapes, dtypes and bytes.
        dtype: Dtype of the computation.
        quantization: Of weights and the activations that they are multiplied by: ``int8``; None: none.
        max_model_len: Tokens of the longest sequence, if the user limited it.
        arithmetic: ``config.ARITHMETIC`` of the treeshare that computes the run; 0 if it is not written.
        sharing: ``tree``, ``one-level`` or ``none``.
        device: Kind of device that computes, ``cpu`` or ``cuda``; ``cpu`` if it is not written.
        fold_cost: Of runs of arithmetic 0, whose bits depended on it; read, and not written any more.
        sampling: ``SamplingParams`` without ``n`` and ``seed``.
        n: Completions per problem; may grow.
        seed: Run seed.
        versions: Versions of Python and of the packages that compute, the kernels and the number of threads;
            informative.
        workers: The worker processes, if the run was begun with several; informative.
        created: When the run began, UTC; informative.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    task: str
    task_options: dict[str, str] = {}
    data: str
    problems_sha256: str = ""
    prompting: dict[str, bool | int | str] = {}
    task_ids: list[str]
    prompts_sha256: str
    model: str
    model_sha256: str
    dtype: str
    quantization: str | None = None
    max_model_len: int | None = None
    arithmetic: NonNegativeInt = 0
    sharing: str = "tree"
    device: str = "cpu"
    fold_cost: dict[Literal["launch_cost", "merge_cost", "token_cost", "max_rows"], NonNegativeInt] = Field(
        default={}, exclude=True
    )
    sampling: dict[str, bool | int | FiniteFloat | str | list[int] | list[str] | dict[str, Any] | None]
    n: PositiveInt
    seed: NonNegativeInt
    versions: dict[str, str]
    workers: str = ""
    created: str

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest.

        Raises:
            DataError: If it is missing, unreadable or not a manifest; the message names the file and the
                field.
        """
        where = f"manifest: {one_line(path)}"
        content = read_file(path, "manifest", max_bytes=MAX_BYTES)
        try:
            return cls.model_validate(parse_json(content), strict=True)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            field = one_line(".".join(map(str, first["loc"])), 60) or "the file"
            raise DataError(f"{where}: {field}: {one_line(first['msg'])}") from error
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {one_line(error)}") from error

    def write(self, path: Path) -> None:
        """Write atomically: whatever happens, the file has either the old or the new content.

        Raises:
            DataError: If the directory cannot be written.
        """
        write_atomically(path, dump_json(self.model_dump(), indent=2) + b"\n")

    def differences(self, other: Manifest) -> list[str]:
        """The parameters that differ, as texts such as ``temperature: run has 0.8, command has 0.7``.

        ``n`` and informative fields are not compared. After eight differences the others are only counted.

        Args:
            other: The command's manifest; ``self`` is the run's.
        """
        found = []
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if name in _INFORMATIVE or mine == theirs:
                continue
            if name == "arithmetic":
                found.append(f"it was computed by arithmetic {mine}, and this treeshare computes by {theirs}")
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
        """A line that names the versions that differ, or the empty string.

        Args:
            other: The command's manifest; ``self`` is the run's.
        """
        found = _differing_keys(self.versions, other.versions)
        return f"versions differ, so new completions may differ too: {'; '.join(found[:8])}" if found else ""


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
    """SHA-256 of all prompts' lengths and token ids."""
    digest = hashlib.sha256()
    for ids in prompts:
        tokens = np.asarray(ids, dtype="<i8")
        digest.update(len(tokens).to_bytes(8, "little") + tokens.tobytes())
    return digest.hexdigest()


def current_versions() -> dict[str, str]:
    """Versions of Python and of the packages that compute; ``unknown`` if a package is not installed."""
    versions = {"python": platform.python_version()}
    for name in ("treeshare", "torch", "transformers", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions
