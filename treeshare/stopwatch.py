"""Where the time of a run goes: every moment is charged to exactly one part."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

REST = "rest"
"""The part to which time is charged that belongs to no other part."""


class Stopwatch:
    """Each call charges the time since the previous call to a part of the current phase.

    So the parts add up to the whole time. A disabled stopwatch returns at once; callers need not check.

    Args:
        enabled: Whether it measures.

    Attributes:
        enabled: Whether it measures.
        phase: The phase of the following laps: ``prefill``, ``decode`` or ``between``.
        seconds: Seconds by phase and part.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.restart()

    def restart(self) -> None:
        """Clear all measurements and start now."""
        self.phase = "between"
        self.seconds: dict[tuple[str, str], float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Charge the time since the previous call to ``part``."""
        self.split({part: 1})

    def enter(self, phase: str, *, before: str) -> None:
        """Charge the time since the previous call to ``before``, in the old phase; then begin ``phase``."""
        self.lap(before)
        self.phase = phase

    def split(self, shares: Mapping[str, float]) -> None:
        """Charge the time since the previous call to several parts, in proportion to ``shares``.

        If all shares are zero, the first part is charged.
        """
        if not self.enabled:
            return
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        total = sum(shares.values())
        for index, (part, share) in enumerate(shares.items()):
            key = self.phase, part
            fraction = share / total if total else float(index == 0)
            self.seconds[key] = self.seconds.get(key, 0.0) + elapsed * fraction

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Seconds by phase, then by part, the longest part first."""
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        phases: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}, "between": {}}
        for (phase, part), seconds in ordered:
            phases[phase][part] = round(seconds, 6)
        return phases


OFF = Stopwatch(enabled=False)
"""A stopwatch that never measures."""
