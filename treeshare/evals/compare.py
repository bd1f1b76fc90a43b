"""Two runs of the same problems: paired differences, and what else differs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.errors import DataError, one_line
from treeshare.evals.metrics import SUBMISSIONS, fewest_completions, filtered_values, majority_values
from treeshare.evals.statistics.pass_at_k import Estimate, estimates, pass_at_k_matrix, table_ks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from treeshare.evals.judged import JudgedRun
    from treeshare.evals.metrics import Floats

_SHOWN_IDS = 5
_NOT_COMPARED = ("created", "task_ids")


@dataclass(frozen=True, kw_only=True)
class PairedEstimate:
    """A figure of two runs and their difference.

    Attributes:
        first: Of the first run.
        second: Of the second.
        difference: Second less first. Its errors are over problems, paired: what makes a problem hard for
            both cancels out, so they are smaller than those of the two figures suggest.
    """

    first: Estimate
    second: Estimate
    difference: Estimate


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two runs differ in.

    Attributes:
        pass_at_k: By k, as far as both have completions.
        majority_at_k: The same; empty unless both runs' completions have answers.
        submissions_at_k: Filtered n@k by n, k being all completions of either run; empty unless both have it.
        problems: Per problem, the shares of right completions in the first and the second run.
        manifest: Name and both values of what differs in how they were made.
    """

    pass_at_k: dict[int, PairedEstimate]
    majority_at_k: dict[int, PairedEstimate]
    submissions_at_k: dict[int, PairedEstimate]
    problems: dict[str, tuple[float, float]]
    manifest: list[tuple[str, Any, Any]]

    @property
    def num_better(self) -> int:
        """Problems of which the second run has the larger share right."""
        return sum(second > first for first, second in self.problems.values())

    @property
    def num_worse(self) -> int:
        """Problems of which the first run has the larger share right."""
        return sum(second < first for first, second in self.problems.values())

    def summary(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        others = {"majority@k": self.majority_at_k, "n@k": self.submissions_at_k}
        return {
            "k": _entries(self.pass_at_k),
            **{name: _entries(found) for name, found in others.items() if found},
            "num_problems": len(self.problems),
            "num_better": self.num_better,
            "num_worse": self.num_worse,
            "problems": {task_id: list(shares) for task_id, shares in self.problems.items()},
            "manifest": {name: [first, second] for name, first, second in self.manifest},
        }

    def table(self) -> str:
        """The summary as Markdown."""
        lines = [
            f"{len(self.problems)} problems: the second run is better at {self.num_better}, "
            f"worse at {self.num_worse}, equal at {len(self.problems) - self.num_better - self.num_worse}",
            *_estimates("k", "pass@k", self.pass_at_k),
            *_estimates("k", "majority@k", self.majority_at_k),
            *_estimates("n", "n@k", self.submissions_at_k),
            *["", "| differs | first | second |", "|---|---|---|"],
            *(f"| {_cell(name)} | {_cell(a)} | {_cell(b)} |" for name, a, b in self.manifest),
        ]
        return "\n".join(lines)


def _entries(found: Mapping[int, PairedEstimate]) -> dict[str, Any]:
    return {
        str(k): {name: getattr(paired, name).to_dict() for name in ("first", "second", "difference")}
        for k, paired in found.items()
    }


def _estimates(first: str, name: str, found: Mapping[int, PairedEstimate]) -> list[str]:
    """A table of paired estimates with an empty line above it; nothing where there are none."""
    if not found:
        return []
    lines = [
        "",
        f"| {first} | {name}, first | second | difference | standard error | 95 % interval |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for k, paired in found.items():
        change = paired.difference
        error = "undefined" if change.standard_error is None else _percent(change.standard_error)
        interval = "undefined"
        if change.interval is not None:
            low, high = change.interval
            interval = f"{100 * low:+.2f} to {100 * high:+.2f} %"
        lines.append(
            f"| {k} | {_percent(paired.first.value)} | {_percent(paired.second.value)} "
            f"| {100 * change.value:+.2f} % | {error} | {interval} |"
        )
    return lines


def compare_runs(first: JudgedRun, second: JudgedRun, *, seed: int = 0) -> Comparison:
    """Compare two evaluated runs of the same problems.

    Args:
        first: What is compared with.
        second: What is compared.
        seed: Of the bootstrap over problems.

    Raises:
        DataError: If the tasks, the problems or the problems' contents differ, or one has a problem of which
            no completion was checked.
    """
    _check_comparable(first, second)
    task_ids = first.manifest.task_ids
    checked = [{task_id: run.checked()[task_id] for task_id in task_ids} for run in (first, second)]
    counts = [(first.counts()[task_id], second.counts()[task_id]) for task_id in task_ids]
    ks = table_ks(min(map(fewest_completions, checked)))
    passing = [pass_at_k_matrix([pair[which] for pair in counts], ks) for which in (0, 1)]
    return Comparison(
        pass_at_k=_paired(ks, passing, seed),
        majority_at_k=_paired(ks, [majority_values(pairs, ks) for pairs in checked], seed),
        submissions_at_k=_paired(SUBMISSIONS, [filtered_values(pairs) for pairs in checked], seed),
        problems={
            task_id: (x[1] / x[0], y[1] / y[0]) for task_id, (x, y) in zip(task_ids, counts, strict=True)
        },
        manifest=_manifest_differences(first, second),
    )


def _paired(ks: Sequence[int], values: Sequence[Floats | None], seed: int) -> dict[int, PairedEstimate]:
    """Estimates from each run's values ``[num_problems, num_ks]``; empty if one has none."""
    known = [matrix for matrix in values if matrix is not None]
    if len(known) < len(values):
        return {}
    first, second = known
    columns = [estimates(matrix, seed) for matrix in (first, second, second - first)]
    return {
        k: PairedEstimate(first=a, second=b, difference=change)
        for k, a, b, change in zip(ks, *columns, strict=True)
    }


def _check_comparable(first: JudgedRun, second: JudgedRun) -> None:
    a, b = first.manifest, second.manifest
    if a.task != b.task:
        raise DataError(f"compare: got runs of {one_line(a.task)} and {one_line(b.task)}, expected one task")
    for wanted, given, path in ((a, b, second.path), (b, a, first.path)):
        missing = [task_id for task_id in wanted.task_ids if task_id not in set(given.task_ids)]
        if missing:
            raise DataError(
                f"compare: {one_line(path)} has no {_named(missing)}; expected the same problems: "
                "the same --data and --limit"
            )
    if a.problems_sha256 and b.problems_sha256 and a.problems_sha256 != b.problems_sha256:
        raise DataError(
            "compare: problems of the same ids differ in their contents; expected the same --data"
        )
    for run in (first, second):
        checked = run.counts()
        missing = [task_id for task_id in run.manifest.task_ids if task_id not in checked]
        if missing:
            raise DataError(
                f"compare: {one_line(run.path)} has no checked completion of {_named(missing)}; "
                f"run `treeshare evaluate` on it first"
            )


def _named(task_ids: Sequence[str]) -> str:
    shown = ", ".join(one_line(task_id, 40) for task_id in task_ids[:_SHOWN_IDS])
    return shown if len(task_ids) <= _SHOWN_IDS else f"{shown} and {len(task_ids) - _SHOWN_IDS} more"


def _manifest_differences(first: JudgedRun, second: JudgedRun) -> list[tuple[str, Any, Any]]:
    a, b = _flat(first), _flat(second)
    names = list(a) + [name for name in b if name not in a]
    return [(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)]


def _flat(run: JudgedRun) -> dict[str, Any]:
    """The manifest's values, those of its inner mappings under ``outer.inner``."""
    flat: dict[str, Any] = {}
    for name, value in run.manifest.model_dump(exclude=set(_NOT_COMPARED)).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[name] = value
    return flat


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _cell(value: object) -> str:
    return one_line(value, 60).replace("|", "\\|")
