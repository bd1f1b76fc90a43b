"""Completions of each problem by ascending index, whichever of them is finished first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from treeshare.engine.sequence import Completion, Request


class IndexOrder:
    """Holds completions back until those before them have come; of a problem that was ended, it drops them.

    Args:
        requests: A run's; their indices ascend.
    """

    def __init__(self, requests: Sequence[Request]) -> None:
        self._left = [list(reversed(request.completion_indices)) for request in requests]
        self._held: list[dict[int, Completion]] = [{} for _ in requests]

    def take(self, completion: Completion) -> Iterator[Completion]:
        """A completion has come: the ones whose turn it is now.

        Between two of them the problem may be ended.
        """
        left, held = self._left[completion.request_index], self._held[completion.request_index]
        held[completion.completion_index] = completion
        while left and left[-1] in held:
            yield held.pop(left.pop())

    def end(self, request_index: int) -> None:
        """Nothing more of this problem is wanted."""
        self._left[request_index].clear()
        self._held[request_index].clear()
