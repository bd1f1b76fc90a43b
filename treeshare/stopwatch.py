"""Where the time of a run goes: every moment is charged to one part, once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

REST = "rest"
"""The part that gets what no other part was charged for."""


class Stopwatch:
    """Charges the time since its last call to a part of the current phase, so that parts add up to the whole.

    A stopwatch that is off returns at once: whoever is measured calls it without asking.

    Args:
        enabled: Whether it measures.

    Attributes:
        enabled: Likewise.
        phase: What the following laps belong to: ``prefill``, ``decode`` or ``between``.
        seconds: By phase and part.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled
        self.restart()

    def restart(self) -> None:
        """Forget everything and start now."""
        self.phase = "between"
        self.seconds: dict[tuple[str, str], float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Charge the time since the last call to ``part``."""
        self.split({part: 1})

    def enter(self, phase: str, *, before: str) -> None:
        """Charge the time since the last call to ``before``, in the phase that ends, and begin ``phase``."""
        self.lap(before)
        self.phase = phase

    def split(self, shares: Mapping[str, float]) -> None:
        """Charge the time since the last call to several parts, in proportion to ``shares``.

        Shares may all be zero: then the first part gets it.
        """
        if not self.enabled:
            return
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        total = sum(shares.values())
        for index, (part, share) in enumerate(shares.items()):
            key = self.phase, part
            fraction = share / total if total else float(index == 0)
            self.seconds[key] = self.seconds.get(key, 0.0) + passed * fraction

    def as_dict(self) -> dict[str, dict[str, float]]:
        """Seconds by phase, then by part, the longest first."""
        ordered = sorted(self.seconds.items(), key=lambda item: -item[1])
        phases: dict[str, dict[str, float]] = {"prefill": {}, "decode": {}, "between": {}}
        for (phase, part), seconds in ordered:
            phases[phase][part] = round(seconds, 6)
        return phases


OFF = Stopwatch(enabled=False)
"""For whoever is not measured."""
