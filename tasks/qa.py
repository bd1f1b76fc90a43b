"""Questions and answers of any JSON lines file: which fields, and when an answer is right, say options.

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
        prompt_field: The field with the prompt; dots lead into objects.
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
        """The records of ``shot_data``, or of the data itself, each with its answer behind it."""
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
        value: Any = record.model_extra
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                there = ", ".join(sorted(record.model_extra or {})[:8])
                raise DataError(
                    f"data: {where}: no field {one_line(path, 40)}, there are: {one_line(there, 120)}; "
                    f"give {option}"
                )
            value = value[name]
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)):
            return json.dumps(value)
        raise DataError(
            f"data: {where}, {one_line(path, 40)}: got {type(value).__name__}, expected text or a number"
        )


def _id(record: QaRecord, place: int) -> str:
    fields = record.model_extra or {}
    found = next((fields[name] for name in ("id", "task_id") if name in fields), None)
    return str(found) if isinstance(found, (str, int)) and str(found) else f"qa/{place}"
