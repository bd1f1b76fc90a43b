"""A finished completion and its line in the journal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.files import MAX_LINE_BYTES, dump_json, parse_json

if TYPE_CHECKING:
    from typing import Self

ENDED_KEY = "ended_problem"
"""Additional key of a record after which its problem was ended early: the reason."""


class TornLineError(DataError):
    """A line is not JSON; a killed process may leave such a line at the end of the file."""


class Record(BaseModel):
    """A finished completion.

    Additional keys are allowed if JSON can express their values; they are written in alphabetical order after
    the fields below.

    Attributes:
        task_id: Task id of the problem.
        completion_index: Index among the problem's completions.
        completion: The text, cut at the stop string.
        token_ids: All generated tokens.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id, or None.
        cumulative_logprob: Natural log of the probability that the model gives the tokens, before
            temperature; finite.
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
        """Identifies the completion within a run."""
        return self.task_id, self.completion_index

    def line(self) -> bytes:
        """The record as a line, newline included; the same record always gives the same bytes.

        ``Record.parse`` returns an equal record, floats equal to the last bit.

        Raises:
            DataError: If a number is not finite, JSON cannot express a value, or the line is longer than
                ``MAX_LINE_BYTES``.
        """
        self._check_finite()
        values: dict[str, Any] = {name: getattr(self, name) for name in type(self).model_fields}
        values |= sorted((self.model_extra or {}).items())
        try:
            line = dump_json(values) + b"\n"
        except ValueError as error:
            raise DataError(f"{self.name}: cannot be written: {one_line(error)}") from error
        if len(line) > MAX_LINE_BYTES:
            raise DataError(f"{self.name}: got {len(line)} bytes, expected at most {MAX_LINE_BYTES}")
        return line

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """Read a line, strictly: no strings in place of numbers, no NaN.

        Raises:
            TornLineError: If ``line`` is not JSON.
            DataError: If ``line`` is JSON but not a record.
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
                f"{self.name}: cumulative_logprob: got {self.cumulative_logprob}, expected a finite number"
            )

    @property
    def name(self) -> str:
        """How messages name the record."""
        return f"{one_line(self.task_id)} completion {self.completion_index}"
