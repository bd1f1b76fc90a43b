"""A result of ``treeshare doctor``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.errors import TreeshareError, one_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of a check.

    Attributes:
        name: What was checked.
        found: What was found, in words; empty if it is missing.
        required: Whether sampling and evaluating fail without it.
        remedy: How to get or fix it; empty if there is nothing to do.
        data: The result for programs.
    """

    name: str
    found: str
    required: bool = False
    remedy: str = ""
    data: dict[str, Any]

    @property
    def fails(self) -> bool:
        """Whether it is required and missing."""
        return self.required and not self.found

    def line(self) -> str:
        """The finding as a line of text."""
        mark = "ok" if not self.remedy else "MISSING" if self.fails else "note"
        text = self.found or "missing"
        return f"{mark:8}{self.name:16}{text}" + (f" -> {self.remedy}" if self.remedy else "")


def findings_of(name: str, check: Callable[[], Finding | Iterator[Finding]]) -> Iterator[Finding]:
    """What a check finds; one that fails is a finding itself, of that name: the checks after it continue."""
    try:
        found = check()
        yield from [found] if isinstance(found, Finding) else found
    except Exception as error:
        text = one_line(error)
        reason = text if isinstance(error, TreeshareError) else f"{type(error).__name__}: {text}"
        yield Finding(name=name, found="", required=True, remedy=reason, data={"error": reason})
