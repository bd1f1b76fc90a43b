"""A judged run's metrics: pass@k, majority@k, filtered n@k and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np

from treeshare.errors import ConfigError, DataError
from treeshare.evals.statistics.calibration import Calibration, Rescaling, calibrate, rescale
from treeshare.evals.statistics.clustering import Candidate, submissions_at_k
from treeshare.evals.statistics.confidence import Confidence, log_confidence
from treeshare.evals.statistics.majority import majority_at_k
from treeshare.evals.statistics.pass_at_k import Estimate, curve_ks, estimates, pass_at_each_k, table_ks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from treeshare.evals.results import CompletionResult
    from treeshare.runs import Record

    Floats = NDArray[np.float64]
    Checked = Mapping[str, Sequence[tuple[Record, CompletionResult]]]

SUBMISSIONS = (1, 10)


@dataclass(frozen=True, kw_only=True)
class CalibrationRow:
    """One confidence, as the model gave it or rescaled.

    Attributes:
        confidence: Which.
        rescaling: None for the model's own.
        calibration: How well it fits.
    """

    confidence: Confidence
    rescaling: Rescaling | None
    calibration: Calibration


def fewest_completions(checked: Checked) -> int:
    """The fewest checked completions of a problem; 0 without problems."""
    return min(map(len, checked.values()), default=0)


def pass_curve(checked: Checked) -> dict[int, Estimate]:
    """pass@k for k up to the fewest checked completions of a problem."""
    counts = [(len(pairs), sum(result.passed for _, result in pairs)) for pairs in checked.values()]
    return pass_at_each_k(counts, curve_ks(fewest_completions(checked)))


def majority_curve(checked: Checked, ks: Sequence[int] | None = None) -> dict[int, Estimate]:
    """majority@k for ``ks``, by default those of a table; empty where no completion has an answer."""
    fewest = fewest_completions(checked)
    ks = table_ks(fewest) if ks is None else [k for k in ks if 1 <= k <= fewest]
    if not ks:
        return {}
    values = majority_values(checked, ks)
    return {} if values is None else dict(zip(ks, estimates(values), strict=True))


def majority_values(checked: Checked, ks: Sequence[int]) -> Floats | None:
    """majority@k of each problem, ``[num_problems, num_ks]``; None where no completion has an answer."""
    results = [[result for _, result in pairs] for pairs in checked.values()]
    if all(result.answer is None for problem in results for result in problem):
        return None
    values = np.empty((len(results), len(ks)))
    for row, problem in enumerate(results):
        answers = [result.answer for result in problem]
        right = {
            result.answer
            for result in problem
            if result.answer is not None
            and (result.passed if result.answer_passed is None else result.answer_passed)
        }
        values[row] = [majority_at_k(answers, right, k) for k in ks]
    return values


def filtered_table(checked: Checked) -> dict[int, Estimate]:
    """Filtered n@k for n in ``SUBMISSIONS``, from all completions of each problem; may be empty."""
    values = filtered_values(checked)
    return {} if values is None else dict(zip(SUBMISSIONS, estimates(values), strict=True))


def filtered_values(checked: Checked) -> Floats | None:
    """The same of each problem, float64 ``[num_problems, len(SUBMISSIONS)]``.

    None where no completion was run on public tests or on inputs: nothing could be chosen.
    """
    problems = [
        [Candidate(passed=r.passed, passed_public=r.passed_public, signature=r.signature) for _, r in pairs]
        for pairs in checked.values()
    ]
    if all(c.passed_public is None and c.signature is None for problem in problems for c in problem):
        return None
    return np.array(
        [[submissions_at_k(problem, n, len(problem)) for n in SUBMISSIONS] for problem in problems]
    )


def calibration_rows(checked: Checked) -> tuple[list[CalibrationRow], list[str]]:
    """Each confidence as it is and rescaled, and why what is missing is missing.

    Completions without tokens, which have no confidence, are left out.
    """
    pairs = [
        (record, result) for problem in checked.values() for record, result in problem if record.token_ids
    ]
    if not pairs:
        return [], ["No completion has tokens and a verdict."]
    right = np.array([result.passed for _, result in pairs])
    groups = [record.task_id for record, _ in pairs]
    rows: list[CalibrationRow] = []
    notes: list[str] = []
    for kind in get_args(Confidence):
        try:
            logs = np.array([log_confidence(record, kind) for record, _ in pairs])
        except DataError as error:
            notes.append(f"{kind} is missing: {error}.")
            continue
        rows.append(
            CalibrationRow(confidence=kind, rescaling=None, calibration=calibrate(np.exp(logs), right))
        )
        for method in get_args(Rescaling):
            try:
                rescaled = rescale(logs, right, groups, method)
            except ConfigError as error:
                notes.append(f"{kind} with {method} is missing: {error}.")
                continue
            rows.append(
                CalibrationRow(confidence=kind, rescaling=method, calibration=calibrate(rescaled, right))
            )
    return rows, notes
