"""A finished completion and its line in the journal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.runs.files import dump_json, parse_json

if TYPE_CHECKING:
    from typing import Self

MAX_LINE_BYTES = 256 << 20
"""A longer line is not ours."""


ENDED_KEY = "ended_problem"
"""Further key of a record: why it ended its problem."""


class TornLineError(DataError):
    """A line is not JSON: what a write that was cut short leaves, when it is the last one."""


class Record(BaseModel):
    """One finished completion.

    Further keys are kept, in alphabetical order after these; their values must be what JSON can express.

    Attributes:
        task_id: Its problem.
        completion_index: Which of the problem's completions.
        completion: Its text, cut at the stop string.
        token_ids: Everything generated.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id, or None.
        cumulative_logprob: Natural log of the model's probability, before temperature; finite.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    task_id: str
    completion_index: NonNegativeInt
    completion: str
    token_ids: list[NonNegativeInt]
    finish_reason: str
    stop_reason: int | str | None = None
    cumulative_logprob: float

    @property
    def key(self) -> tuple[str, int]:
        """What makes it one of a kind in a run."""
        return self.task_id, self.completion_index

    def line(self) -> bytes:
        """Its line, newline included; the same record always gives the same bytes.

        ``Record.parse`` gives the same record back, floats to the last bit.

        Raises:
            DataError: If a number is not finite, a value is not JSON's, or the line is longer than
                ``MAX_LINE_BYTES``.
        """
        self._check_finite()
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        values |= sorted((self.model_extra or {}).items())
        try:
            line = dump_json(values) + b"\n"
        except ValueError as error:
            raise DataError(f"{self._name}: cannot be written: {one_line(error)}") from error
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{self._name}: got {len(line)} bytes, expected at most {MAX_LINE_BYTES}")
        return line

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line, strictly: no number from a string, no NaN.

        Raises:
            TornLineError: If it is not JSON.
            DataError: If it is JSON but not a record.
        """
        try:
            values = parse_json(line)
        except ValueError as error:
            raise TornLineError(f"not JSON: {one_line(error)}") from error
        try:
            record = cls.model_validate(values, strict=True)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(one_line(f"{where}: {first['msg']}" if where else first["msg"])) from error
        record._check_finite()
        return record

    def _check_finite(self) -> None:
        if not math.isfinite(self.cumulative_logprob):
            raise DataError(
                f"{self._name}: cumulative_logprob: got {self.cumulative_logprob}, expected a finite number"
            )

    @property
    def _name(self) -> str:
        return f"{one_line(self.task_id)} completion {self.completion_index}"
