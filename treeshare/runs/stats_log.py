"""Speed and memory over time: a line of counters about every second, beside the journal.

It informs and decides nothing: a run whose log cannot be written goes on, and a reader passes over what a
killed process left half-written. Times are of a clock that does not jump.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt, ValidationError

from treeshare.errors import DataError, one_line
from treeshare.runs.files import dump_json, open_regular, parse_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Self

    from treeshare.engine.stats import EngineStats

STATS_NAME = "stats.jsonl"

INTERVAL_S = 1.0
_SLOWDOWN = 500
"""A session of t seconds notes every max(1, t / this) seconds: its lines grow with the logarithm of t."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class StatsLine(BaseModel):
    """The counters of one moment; all but ``session`` and ``rss_bytes`` count from the session's beginning.

    Attributes:
        session: Which run of ``treeshare sample`` on this directory, from 0.
        t_s: Seconds since the session began.
        num_finished: Completions made.
        num_tokens: Tokens generated.
        num_steps: Model calls.
        num_rows: Decoding rows summed over steps.
        prefilled_tokens: Prompt tokens computed.
        prefill_s: Seconds of model calls for prompts.
        decode_s: Seconds of model calls for generated tokens.
        sampling_s: Seconds of drawing tokens and checking stop conditions.
        peak_kv_bytes: Most bytes of KV held at once, so far.
        rss_bytes: Memory of the process at that moment; 0 where the system does not say.
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
    """A context in which a thread notes the counters; the last line is written when it ends.

    Args:
        path: Appended to; made if missing.
        stats: Gives the counters; called on the thread.
        interval_s: Between lines, at first.
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
            self._write(b"\n" if lines else b"")  # what a killed process left gets a line of its own

    def __enter__(self) -> Self:
        self._note()
        with contextlib.suppress(RuntimeError):  # no more threads: the first and the last line must do
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
        except OSError:  # a full disk, first of all; the journal is who tells the user
            os.close(self._descriptor)
            self._descriptor = -1


def read_stats(path: Path) -> list[StatsLine]:
    """Read a log; passes over what is no line of it. Empty if there is none.

    Raises:
        DataError: If it cannot be read.
    """
    if not os.path.lexists(path):
        return []
    try:
        with open(open_regular(path, os.O_RDONLY), "rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"stats: cannot read {one_line(path)}: {error.strerror}") from error
    lines = []
    for line in content.split(b"\n"):
        with contextlib.suppress(ValueError, ValidationError):
            lines.append(StatsLine.model_validate(parse_json(line), strict=True))
    return lines


def _rss_bytes() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
