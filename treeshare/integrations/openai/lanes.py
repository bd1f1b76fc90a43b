"""Threads for work outside the event loop, in which long work does not delay short work."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BOUNDS = 32 << 10, 512 << 10
"""Sizes of requests or answers in bytes at which the next thread is used."""


class Lanes:
    """A thread for each range of sizes, so that work waits only for work of about its own size.

    Tokenisers and parsers of long texts work outside Python's lock, or give it up often.
    """

    def __init__(self) -> None:
        self._lanes = [ThreadPoolExecutor(1, thread_name_prefix=f"lane-{i}") for i in range(len(BOUNDS) + 1)]

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """Do something in the thread for its ``size``; cancelled before it begins, it is not done."""
        lane = self._lanes[sum(size > bound for bound in BOUNDS)]
        return await asyncio.get_running_loop().run_in_executor(lane, work)
