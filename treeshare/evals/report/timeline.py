"""The sessions of a run one after another: speed and memory over time, and totals."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.runs.stats_log import StatsLine

NUM_POINTS = 120


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """What the log says, with the sessions' pauses left out.

    Attributes:
        wall_s: Seconds of all sessions.
        prefill_s: Seconds of model calls for prompts.
        decode_s: Seconds of model calls for generated tokens.
        sampling_s: Seconds of drawing tokens.
        num_tokens: Tokens generated, also those of completions that an interrupt cut short.
        speed: Points of seconds and tokens per second, at the middle of what they are the mean of.
        rss_bytes: Points of seconds and bytes.
        kv_bytes: Points of seconds and the peak of KV bytes so far in the session.
        starts: Seconds at which sessions but the first begin.
    """

    wall_s: float
    prefill_s: float
    decode_s: float
    sampling_s: float
    num_tokens: int
    speed: list[tuple[float, float]]
    rss_bytes: list[tuple[float, float]]
    kv_bytes: list[tuple[float, float]]
    starts: list[float]

    @property
    def peak_rss_bytes(self) -> float:
        """The peak memory that was noted."""
        return max((value for _, value in self.rss_bytes), default=0.0)

    @classmethod
    def of_lines(cls, lines: Sequence[StatsLine]) -> Timeline | None:
        """Join the sessions that generated something; None if none did."""
        sessions = [list(group) for _, group in groupby(lines, key=lambda line: line.session)]
        sessions = [session for session in sessions if session[-1].num_tokens > session[0].num_tokens]
        if not sessions:
            return None
        last = [session[-1] for session in sessions]
        wall_s = sum(line.t_s for line in last)
        speed: list[tuple[float, float]] = []
        rss: list[tuple[float, float]] = []
        kv: list[tuple[float, float]] = []
        starts: list[float] = []
        begin = 0.0
        for session in sessions:
            starts.append(begin)
            thinned = _thin(session, wall_s / NUM_POINTS)
            rss += [(begin + line.t_s, float(line.rss_bytes)) for line in thinned]
            kv += [(begin + line.t_s, float(line.peak_kv_bytes)) for line in thinned]
            for a, b in pairwise(thinned):
                if b.t_s > a.t_s:
                    rate = (b.num_tokens - a.num_tokens) / (b.t_s - a.t_s)
                    speed.append((begin + (a.t_s + b.t_s) / 2, max(rate, 0.0)))
            begin += session[-1].t_s
        return cls(
            wall_s=wall_s,
            prefill_s=sum(line.prefill_s for line in last),
            decode_s=sum(line.decode_s for line in last),
            sampling_s=sum(line.sampling_s for line in last),
            num_tokens=sum(line.num_tokens for line in last),
            speed=speed,
            rss_bytes=rss,
            kv_bytes=kv,
            starts=starts[1:],
        )


def _thin(session: Sequence[StatsLine], spacing_s: float) -> list[StatsLine]:
    """The first and last line, and between them lines at least so far apart."""
    kept = [session[0]]
    for line in session[1:-1]:
        if line.t_s - kept[-1].t_s >= spacing_s:
            kept.append(line)
    if len(session) > 1:
        kept.append(session[-1])
    return kept
