"""Reading a task's records, each checked against the task's fields: local files and the hub."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.evals.numerals import loads
from treeshare.files import read_packed, without_mark
from treeshare.tasks.hub_access import hub_or_cache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.evals.problem import Problem

Fields = TypeVar("Fields", bound=BaseModel)


_ID_BITS = 64


def read_records(path: Path, kind: type[Fields]) -> list[Fields]:
    """Read a file of records: one JSON object per line, or one JSON list; either may be gzipped.

    Raises:
        DataError: If it is missing, unreadable, empty, or a record is not as ``kind`` asks; one line that
            says where.
    """
    content = without_mark(read_packed(path, "data"), path, "data")
    if content.lstrip()[:1] == b"[":
        records: list[Fields] = _checked(content, TypeAdapter(list[kind]), str(path))  # type: ignore[valid-type]
    else:
        lines = enumerate(content.split(b"\n"), start=1)
        records = [
            parse_record(line, kind, f"{path}, line {number}") for number, line in lines if line.strip()
        ]
    if not records:
        raise DataError(
            f"data: {path} contains no record, expected one JSON object per line, or a JSON list of them"
        )
    return records


def parse_record(content: bytes, kind: type[Fields], where: str) -> Fields:
    """One record, from a line of JSON.

    Raises:
        DataError: If it is not as ``kind`` asks; one line that begins with ``where``.
    """
    record: Fields = _checked(content, _adapter(kind), where)
    return record


@cache
def _adapter(kind: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def hub_file(hub_id: str, name: str) -> Path:
    """A file of a hub data set, downloaded once.

    Raises:
        DataError: If it cannot be had.
    """
    from huggingface_hub import hf_hub_download

    with hub_or_cache() as reason:
        try:
            return Path(hf_hub_download(hub_id, name, repo_type="dataset"))
        except Exception as error:
            raise _not_loaded(f"{name} of {hub_id}", f"{hub_id} {name}", reason, error) from error


def read_hub(
    hub_id: str, kind: type[Fields], *, config: str | None = None, splits: Sequence[str], files: str = ""
) -> list[Fields]:
    """Read splits of a hub data set, one after the other, with ``datasets``.

    Args:
        hub_id: The data set's name on the hub.
        kind: The fields that a record must have.
        config: Its configuration, where it has several.
        splits: Their names.
        files: JSON lines inside the data set, ``{split}`` standing for the split's name: for one that comes
            with a loading script, which ``datasets`` does not run.

    Raises:
        DataError: If it cannot be loaded, or a record does not fit ``kind``.
    """
    from datasets import load_dataset

    records: list[Fields] = []
    for split in splits:
        with hub_or_cache() as reason:
            try:
                if files:
                    where = f"hf://datasets/{hub_id}/{files.format(split=split)}"
                    rows: Any = load_dataset("json", data_files=where, split="train")
                else:
                    rows = load_dataset(hub_id, config, split=split)
            except Exception as error:
                raise _not_loaded(hub_id, hub_id, reason, error) from error
        for i, row in enumerate(rows):
            try:
                records.append(kind.model_validate(row))
            except ValidationError as error:
                raise _malformed(f"{hub_id}, {split}, record {i}", error) from error
    return records


def _not_loaded(what: str, names: str, reason: str, error: Exception) -> DataError:
    why = one_line(reason or type(error).__name__, 80)
    return DataError(
        f"data: cannot load {what} from the hub ({why}); give --data FILE, or fetch it where the hub "
        f"answers: hf download {names} --repo-type dataset"
    )


def require_unique(problems: list[Problem], source: object) -> list[Problem]:
    """The problems, unless two have one id.

    Raises:
        DataError: If an id comes twice.
    """
    seen: set[str] = set()
    for problem in problems:
        if problem.task_id in seen:
            raise DataError(f"data: {source}: {problem.task_id} occurs twice, expected different ids")
        seen.add(problem.task_id)
    return problems


def distinct(task_ids: Sequence[str]) -> list[str]:
    """The ids, with ``#2``, ``#3`` ... after those that came before: for data whose own ids repeat."""
    seen = Counter[str]()
    found = []
    for task_id in task_ids:
        seen[task_id] += 1
        found.append(task_id if seen[task_id] == 1 else f"{task_id}#{seen[task_id]}")
    return found


def _checked(content: bytes, kind: TypeAdapter[Any], where: str) -> Any:  # noqa: ANN401
    try:
        return kind.validate_json(content)
    except ValidationError as error:
        if _has_long_integer(error):
            return _checked_slowly(content, kind, where)
        raise _malformed(where, error) from error


def _has_long_integer(error: ValidationError) -> bool:
    """Whether the JSON was refused for an integer of more than 4,300 digits, in whatever field."""
    first = error.errors(include_input=False, include_url=False)[0]
    return first["type"] == "json_invalid" and "number out of range" in first["msg"]


def _checked_slowly(content: bytes, kind: TypeAdapter[Any], where: str) -> Any:  # noqa: ANN401
    """The same by Python's own parser, which takes integers of any length if it is helped."""
    try:
        found = kind.validate_python(loads(content))
    except ValidationError as error:
        raise _malformed(where, error) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: {where}: Invalid JSON: {error}") from error
    for record in found if isinstance(found, list) else [found]:
        for name, value in record:
            if isinstance(value, int) and value.bit_length() > _ID_BITS:
                digits = f"an integer of about {value.bit_length() * 0.30103:.0f} digits"
                raise DataError(f"data: {where}, {name}: {digits}, expected at most {_ID_BITS} bits")
    return found


def _malformed(where: str, error: ValidationError) -> DataError:
    first = error.errors(include_input=False, include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return DataError(f"data: {where}{', ' if field else ''}{field}: {first['msg']}")
