"""A limit on log messages, so that clients cannot make the log grow."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LOGGERS = ("asyncio", "treeshare.server", "uvicorn.error")
"""Who writes while the server runs."""

MAX_RECORDS, PERIOD_S = 5, 60.0


class LogLimit(logging.Filter):
    """Lets ``MAX_RECORDS`` records of each place in the code through every ``PERIOD_S`` seconds.

    The next one after that says how many were left out. A context, in which it is on
    ``LOGGERS``.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._places: dict[tuple[str, int], tuple[float, int]] = {}  # begin of the period, records in it

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        place, now = (record.pathname, record.lineno), self._clock()
        began, count = self._places.get(place, (now, 0))
        if now - began >= PERIOD_S:
            if count > MAX_RECORDS:
                record.msg = f"{record.msg} ({count - MAX_RECORDS} records like this were left out before)"
            began, count = now, 0
        self._places[place] = began, count + 1
        return count < MAX_RECORDS

    def __enter__(self) -> None:
        for name in LOGGERS:
            logging.getLogger(name).addFilter(self)

    def __exit__(self, *_: object) -> None:
        for name in LOGGERS:
            logging.getLogger(name).removeFilter(self)
