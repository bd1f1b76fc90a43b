"""The summary of an evaluated run, as JSON and as Markdown."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.evals.metrics import calibration_rows, filtered_table, majority_curve
from treeshare.evals.sandbox import Verdict
from treeshare.evals.statistics.pass_at_k import pass_at_each_k

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from treeshare.evals.judged import JudgedRun
    from treeshare.evals.metrics import Checked
    from treeshare.evals.statistics.pass_at_k import Estimate
    from treeshare.runs import Manifest

UNDECIDED_NOTE = (
    "Undecided completions differ from the known answer where others are right too. They count as wrong: "
    "the true figures lie between these and what they would be if all undecided ones were right."
)
"""Said wherever verdicts with undecided ones are shown."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run's figures over its checked completions.

    Attributes:
        manifest: How it was made.
        counts: Per problem, completions and right ones.
        verdicts: How often each was given, the most frequent first.
        pass_at_k: By k.
        majority_at_k: By k; empty where no completion has an answer.
        submissions_at_k: Filtered n@k by n, k being all completions; empty where nothing could be chosen.
    """

    manifest: Manifest
    counts: dict[str, tuple[int, int]]
    verdicts: dict[str, int]
    pass_at_k: dict[int, Estimate]
    majority_at_k: dict[int, Estimate]
    submissions_at_k: dict[int, Estimate]

    @classmethod
    def of(cls, run: JudgedRun, ks: Sequence[int] | None = None) -> RunSummary:
        """Sum up a run.

        Args:
            run: With its verdicts.
            ks: For which k; by default ``table_ks``. Those that a problem has too few completions for are
                left out.
        """
        checked, counts = run.checked(), run.counts()
        verdicts = Counter(result.verdict for pairs in checked.values() for _, result in pairs)
        return cls(
            manifest=run.manifest,
            counts=counts,
            verdicts=dict(verdicts.most_common()),
            pass_at_k=pass_at_each_k(list(counts.values()), ks),
            majority_at_k=majority_curve(checked, ks),
            submissions_at_k=filtered_table(checked),
        )

    @property
    def num_completions(self) -> int:
        """Those that were checked."""
        return sum(total for total, _ in self.counts.values())

    @property
    def num_correct(self) -> int:
        """Those that are right."""
        return sum(correct for _, correct in self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON; what the task has no figures for is left out."""
        manifest, first = self.manifest, self.pass_at_k.get(1)
        others = {"majority@k": self.majority_at_k, "n@k": self.submissions_at_k}
        return {
            "run": manifest.model_dump(
                include={"task", "model", "dtype", "n", "seed", "sampling", "prompting"}
            ),
            "pass@1": first and first.value,
            "pass@1_se": first and first.standard_error,
            "k": _entries(self.pass_at_k),
            **{name: _entries(found) for name, found in others.items() if found},
            "num_problems": len(self.counts),
            "num_completions": self.num_completions,
            "num_correct": self.num_correct,
            "verdicts": self.verdicts,
        }

    def table(self) -> str:
        """All of it as Markdown."""
        manifest, num_problems = self.manifest, len(self.counts)
        shots = manifest.prompting.get("shots", 0)
        lines = [
            f"{manifest.task}, {manifest.model}, {manifest.dtype}: n {manifest.n}, seed {manifest.seed}, "
            f"temperature {manifest.sampling.get('temperature')}, shots {shots}",
            f"{self.num_completions} completions of {num_problems} problem{'s' * (num_problems != 1)}, "
            f"{self.num_correct} right",
            *_estimates("k", "pass@k", self.pass_at_k),
            *_estimates("k", "majority@k", self.majority_at_k),
            *_estimates("n", "n@k, filtered and clustered", self.submissions_at_k),
            *["", "| verdict | completions |", "|---|--:|"],
            *(f"| {verdict} | {count} |" for verdict, count in self.verdicts.items()),
            *(["", UNDECIDED_NOTE] if Verdict.UNDECIDED in self.verdicts else []),
        ]
        return "\n".join(lines)


def calibration_dict(checked: Checked) -> dict[str, Any]:
    """Calibration, ready for JSON, without the diagrams' bins; and why what is missing is missing."""
    rows, notes = calibration_rows(checked)
    return {
        "calibration": [
            {
                "confidence": row.confidence,
                "rescaling": row.rescaling,
                "num_completions": row.calibration.num_completions,
                "ece": row.calibration.ece,
                "brier": row.calibration.brier,
                "skill_score": row.calibration.skill_score,
            }
            for row in rows
        ],
        "calibration_notes": notes,
    }


def _entries(found: Mapping[int, Estimate]) -> dict[str, Any]:
    return {str(k): estimate.to_dict() for k, estimate in found.items()}


def _estimates(first: str, name: str, found: Mapping[int, Estimate]) -> list[str]:
    """A table of estimates with an empty line above it; nothing where there are none."""
    if not found:
        return []
    lines = ["", f"| {first} | {name} | standard error | 95 % interval |", "|--:|--:|--:|--:|"]
    for k, estimate in found.items():
        error = "undefined" if estimate.standard_error is None else f"{100 * estimate.standard_error:.2f} %"
        interval = "undefined"
        if estimate.interval is not None:
            low, high = estimate.interval
            interval = f"{100 * low:.1f} to {100 * high:.1f} %"
        lines.append(f"| {k} | {100 * estimate.value:.2f} % | {error} | {interval} |")
    return lines
