"""Searches with untrusted patterns of Python's ``re``, within a time limit."""

from __future__ import annotations

from pathlib import Path

from treeshare.evals.helper_process import HelperError, HelperLimits, HelperProcess

MAX_CHARS = 100_000
"""Of the text that is searched."""


class PatternSearch:
    """Searches in a helper process, kept for many searches. Safe to use from several threads."""

    def __init__(self, limits: HelperLimits | None = None) -> None:
        limits = limits or HelperLimits(cpu_s=1.0, memory_bytes=256 << 20)
        self._helper = HelperProcess(Path(__file__).with_name("pattern_child.py"), limits)

    def search(self, pattern: str, text: str) -> tuple[bool, str]:
        """Whether ``pattern`` is found in ``text``, and a few words on why it is not."""
        try:
            answer = self._helper.ask({"pattern": pattern, "text": text[:MAX_CHARS]})
        except HelperError as error:
            return False, f"the pattern was not searched to the end: {error}"
        found = bool(answer.get("found"))
        return found, "" if found else answer.get("fault", "the pattern is not found")

    def fault(self, pattern: str) -> str:
        """What is wrong with a pattern; empty if nothing is."""
        try:
            return str(self._helper.ask({"pattern": pattern, "text": ""}).get("fault", ""))
        except HelperError as error:
            return str(error)

    def close(self) -> None:
        """End the helper process."""
        self._helper.close()
