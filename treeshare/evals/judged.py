"""A run together with what is known about its completions: what reports, comparisons and calibration read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from treeshare.errors import DataError, one_line
from treeshare.evals.results import read_results
from treeshare.runs import read_run

if TYPE_CHECKING:
    from treeshare.evals.results import CompletionResult
    from treeshare.runs import Manifest, Record


@dataclass(frozen=True, kw_only=True)
class JudgedCompletion:
    """A completion and its result; None if it was not checked."""

    record: Record
    result: CompletionResult | None


@dataclass(frozen=True, kw_only=True)
class JudgedRun:
    """A run and its results.

    Attributes:
        path: Its directory.
        manifest: Its parameters.
        problems: Per problem, in the run's order, the completions that there are, by index.
    """

    path: Path
    manifest: Manifest
    problems: dict[str, list[JudgedCompletion]]

    @classmethod
    def read(cls, path: str | Path) -> JudgedRun:
        """Read a run directory, whether or not it was evaluated, and also while it is being filled.

        Raises:
            DataError: If there is no run, or a file of it is broken.
        """
        results = read_results(Path(path))  # first: they are made from completions, which only grow
        manifest, records = read_run(path)
        problems: dict[str, list[JudgedCompletion]] = {task_id: [] for task_id in manifest.task_ids}
        for record in sorted(records, key=lambda record: record.completion_index):
            judged = JudgedCompletion(record=record, result=results.pop(record.key, None))
            problems[record.task_id].append(judged)
        for task_id, index in results:
            raise DataError(
                f"results: {one_line(path)}: {one_line(task_id)} completion {index} is not in the run; "
                "evaluate again"
            )
        return cls(path=Path(path), manifest=manifest, problems=problems)

    @property
    def num_completions(self) -> int:
        """Completions that there are."""
        return sum(map(len, self.problems.values()))

    def checked(self) -> dict[str, list[tuple[Record, CompletionResult]]]:
        """The problems with checked completions, and these."""
        found = {
            task_id: [
                (completion.record, completion.result)
                for completion in completions
                if completion.result is not None
            ]
            for task_id, completions in self.problems.items()
        }
        return {task_id: pairs for task_id, pairs in found.items() if pairs}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Per problem with checked completions, how many, and how many are right."""
        return {
            task_id: (len(pairs), sum(result.passed for _, result in pairs))
            for task_id, pairs in self.checked().items()
        }
