"""Speed and memory over time: a line of counters about every second, in a file next to the journal.

The log is only informative: if it cannot be written, the run continues, and readers skip lines that a killed
process left incomplete. Times are those of a monotonic clock.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from treeshare.errors import DataError
from treeshare.files import dump_json, open_regular, parse_json, read_lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from treeshare.engine.stats import EngineStats

STATS_NAME = "stats.jsonl"

INTERVAL_S = 1.0
_SLOWDOWN = 500
"""After t seconds the interval is max(1, t / this) seconds, so the lines grow with the logarithm of t."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class StatsLine(BaseModel):
    """The counters at a moment; all but ``session`` and ``rss_bytes`` count from the session's beginning.

    Attributes:
        session: Number of the ``treeshare sample`` process among those that worked on this directory, from 0.
        t_s: Seconds since the session began.
        num_finished: Finished completions.
        num_tokens: Generated tokens.
        num_steps: Model calls.
        num_rows: Decoding rows, summed over steps.
        prefilled_tokens: Prompt tokens computed.
        prefill_s: Seconds of model calls for prompts.
        decode_s: Seconds of model calls for generated tokens.
        sampling_s: Seconds of sampling tokens and checking stop conditions.
        peak_kv_bytes: Maximum bytes of KV held at once, so far.
        rss_bytes: Resident memory of the process at that moment; 0 if the system does not report it.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    session: NonNegativeInt
    t_s: NonNegativeFloat
    num_finished: NonNegativeInt
    num_tokens: NonNegativeInt
    num_steps: NonNegativeInt
    num_rows: NonNegativeInt
    prefilled_tokens: NonNegativeInt
    prefill_s: NonNegativeFloat
    decode_s: NonNegativeFloat
    sampling_s: NonNegativeFloat
    peak_kv_bytes: NonNegativeInt
    rss_bytes: NonNegativeInt


class StatsLog:
    """A context in which a thread logs the counters; it ends with a last line.

    Args:
        path: The file; made if missing, else appended to.
        stats: Returns the counters; called on the thread.
        interval_s: Seconds between lines, in the beginning.
    """

    def __init__(
        self, path: Path, stats: Callable[[], EngineStats], *, interval_s: float = INTERVAL_S
    ) -> None:
        self._stats = stats
        self._interval_s = interval_s
        self._began = time.perf_counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._note_until_stopped, daemon=True)
        self._descriptor = -1
        self._session = 0
        with contextlib.suppress(OSError, DataError):
            lines = read_stats(path)
            self._session = lines[-1].session + 1 if lines else 0
            self._descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
            self._write(b"\n" if lines else b"")  # ends a line that a killed process left incomplete

    def __enter__(self) -> Self:
        self._note()
        with contextlib.suppress(RuntimeError):  # no thread can be started: log only the first and last line
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._note()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _note_until_stopped(self) -> None:
        while not self._stop.wait(max(self._interval_s, (time.perf_counter() - self._began) / _SLOWDOWN)):
            self._note()

    def _note(self) -> None:
        stats = self._stats()
        counters = {
            name: getattr(stats, name)
            for name in StatsLine.model_fields
            if name not in ("session", "t_s", "rss_bytes")
        }
        line = StatsLine(
            session=self._session,
            t_s=round(time.perf_counter() - self._began, 3),
            rss_bytes=_rss_bytes(),
            **counters,
        )
        self._write(dump_json(line.model_dump()) + b"\n")

    def _write(self, content: bytes) -> None:
        if self._descriptor < 0:
            return
        try:
            os.write(self._descriptor, content)
        except OSError:  # e.g. a full disk; the journal's error will tell the user
            os.close(self._descriptor)
            self._descriptor = -1


def read_stats(path: Path) -> list[StatsLine]:
    """Read a log and skip broken lines; the list is empty if there is no file.

    Raises:
        DataError: If the file cannot be read.
    """
    if not os.path.lexists(path):
        return []
    lines = []
    for line in read_lines(path, "stats"):
        with contextlib.suppress(ValueError, ValidationError):
            lines.append(StatsLine.model_validate(parse_json(line), strict=True))
    return lines


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
