"""Verdicts on a run's completions, as ``treeshare evaluate`` writes them into the run directory."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, NonNegativeInt, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.files import parse_json, read_lines

if TYPE_CHECKING:
    from pathlib import Path

RESULTS_NAME = "results.jsonl"


class CompletionResult(BaseModel):
    """What checking a completion said.

    Attributes:
        task_id: Its problem.
        completion_index: Which of the problem's completions.
        passed: Whether it is right.
        verdict: How it ended, in words.
        detail: One line on why it did not pass.
        answer: What it votes for in majority@k, of equivalent answers the one that stands for all; None if it
            has no answer.
        answer_passed: Whether that one is right, where it differs from ``passed``; else None.
        passed_public: Whether it passes the public tests; None where the problem has none.
        signature: Stands for its behaviour on inputs; see ``clustering.Candidate``.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    task_id: str
    completion_index: NonNegativeInt
    passed: bool
    verdict: str
    detail: str = ""
    answer: str | None = None
    answer_passed: bool | None = None
    passed_public: bool | None = None
    signature: str | None = None


def read_results(directory: Path) -> dict[tuple[str, int], CompletionResult]:
    """Read the results in a run directory, by ``(task_id, completion_index)``; empty if not evaluated yet.

    Raises:
        DataError: If the file cannot be read, or a line is no result or comes twice; with its number.
    """
    path = directory / RESULTS_NAME
    results: dict[tuple[str, int], CompletionResult] = {}
    if not os.path.lexists(path):
        return results
    for number, line in enumerate(read_lines(path, "results"), 1):
        if not line.strip():
            continue
        where = f"results: {one_line(path)}, line {number}"
        try:
            result = CompletionResult.model_validate(parse_json(line), strict=True)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            field = one_line(".".join(map(str, first["loc"])), 60)
            raise DataError(f"{where}: {field}: {one_line(first['msg'])}; evaluate again") from error
        except ValueError as error:
            raise DataError(f"{where}: not JSON: {one_line(error)}; evaluate again") from error
        key = (result.task_id, result.completion_index)
        if key in results:
            raise DataError(f"{where}: {one_line(key[0])} completion {key[1]} occurs twice; evaluate again")
        results[key] = result
    return results
