"""The result of checking a completion."""

from __future__ import annotations

from dataclasses import dataclass

from treeshare.evals.sandbox import Verdict


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """What checking a completion said.

    Attributes:
        verdict: How it ended.
        detail: One line on why it did not pass.
        passed_public: Whether it was right on the tests that the problem shows, AlphaCode's filter; None
            where the task makes no difference between tests.
        signature: Stands for what the program prints on some inputs, for clustering; None where it was not
            asked for.
    """

    verdict: Verdict
    detail: str
    passed_public: bool | None = None
    signature: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the completion is right."""
        return self.verdict is Verdict.PASSED
