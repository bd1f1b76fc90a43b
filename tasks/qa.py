"""Questions and answers of any JSON lines file; options name the fields and the judge.

``qa.md`` has the details.
"""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from treeshare.errors import ConfigError, DataError, one_line
from treeshare.tasks.answer_task import AnswerTask
from treeshare.tasks.reading import distinct, read_records
from treeshare.tree import Shot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from treeshare.evals.problem import Problem


class QaRecord(BaseModel):
    """A record with whatever fields."""

    model_config = ConfigDict(extra="allow")


class Qa(AnswerTask):
    """The task; without worked examples unless the user says otherwise.

    Args:
        prompt_field: The field with the prompt; dots lead into objects and lists.
        answer_field: The field with the answer.
        judge: When an answer is right.
    """

    name = "qa"
    options = MappingProxyType(
        {
            "prompt_field": "field with the prompt, question by default",
            "answer_field": "field with the answer, answer by default",
            "judge": "exact (default), number, math, regex or choice",
        }
    )

    def __init__(
        self, *, prompt_field: str = "question", answer_field: str = "answer", judge: str = "exact"
    ) -> None:
        self.judge = judge
        self._fields = {"--prompt-field": prompt_field, "--answer-field": answer_field}
        for option, field in self._fields.items():
            if not field or not all(field.split(".")):
                raise ConfigError.of(option, got=field, expected="a field's name")
        super().__init__()

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``; a record's ``id`` or ``task_id`` is its problem's, else its place."""
        if data is None:
            raise DataError("data: qa has no source of its own; give --data FILE")
        records = read_records(data, QaRecord)
        ids = distinct([_id(record, i) for i, record in enumerate(records)])
        problems = []
        for i, (task_id, record) in enumerate(zip(ids, records, strict=True)):
            prompt = self._text(record, "--prompt-field", f"{data}, record {i}")
            answer = self._text(record, "--answer-field", f"{data}, record {i}")
            try:
                problems.append(self.problem(task_id, prompt, answer))
            except DataError as error:
                field = self._fields["--answer-field"]
                raise DataError(
                    f"data: {data}, record {i}, {field}: {error} (--judge {self.judge})"
                ) from error
        return problems

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """The records of ``shot_data``, or of the data itself, each with its answer after it."""
        source = shot_data or data
        if source is None or self.judge == "regex":
            return []
        records = read_records(source, QaRecord)
        ids = distinct([_id(record, i) for i, record in enumerate(records)])
        return [
            Shot(
                prompt=self._text(record, "--prompt-field", f"{source}, record {i}"),
                answer=f" {self._text(record, '--answer-field', f'{source}, record {i}').strip()}",
                task_id=task_id if shot_data is None else None,
            )
            for i, (task_id, record) in enumerate(zip(ids, records, strict=True))
        ]

    def _text(self, record: QaRecord, option: str, where: str) -> str:
        """A field's text; numbers and truth values as JSON writes them."""
        path = self._fields[option]
        fields = record.model_extra or {}
        try:
            value = _reached(fields, path)
        except LookupError:
            there = one_line(", ".join(sorted(fields)[:8]), 120)
            raise DataError(
                f"data: {where}: no field {one_line(path, 40)}, there are: {there}; give {option}"
            ) from None
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, str):
            raise DataError(f"data: {where}, {one_line(path, 40)}: got an empty text, expected some")
        if isinstance(value, (int, float)):
            return json.dumps(value)
        raise DataError(
            f"data: {where}, {one_line(path, 40)}: got {type(value).__name__}, expected text or a number"
        )


def _reached(fields: dict[str, Any], path: str) -> Any:  # noqa: ANN401
    """The value at a path: a field of that very name, else dots lead into objects and lists."""
    if path in fields:
        return fields[path]
    value: Any = fields
    for name in path.split("."):
        value = value[int(name)] if isinstance(value, list) and name.isdecimal() else _member(value, name)
    return value


def _member(value: Any, name: str) -> Any:  # noqa: ANN401
    if not isinstance(value, dict):
        raise KeyError(name)
    return value[name]


def _id(record: QaRecord, place: int) -> str:
    fields = record.model_extra or {}
    found = next((fields[name] for name in ("id", "task_id") if name in fields), None)
    return str(found) if isinstance(found, (str, int)) and str(found) else f"qa/{place}"
