"""What checking a completion says."""

from __future__ import annotations

from dataclasses import dataclass

from treeshare.evals.sandbox import Verdict


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What checking a completion said.

    Attributes:
        verdict: How it ended.
        detail: One line on why it did not pass.
    """

    verdict: Verdict
    detail: str

    @property
    def passed(self) -> bool:
        """Whether the completion is right."""
        return self.verdict is Verdict.PASSED
