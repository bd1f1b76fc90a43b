"""Progress on stderr."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.engine.llm import LLM
    from treeshare.engine.sequence import Completion, Request


def progress_bar(total: int, description: str) -> Any:  # noqa: ANN401
    """A ``tqdm`` bar on stderr."""
    from tqdm import tqdm

    return tqdm(total=total, desc=description, unit="", dynamic_ncols=True, file=sys.stderr)


class SamplingProgress:
    """A bar of completions with tokens per second; says how to go on after an interrupt."""

    def __init__(self, llm: LLM, requests: Sequence[Request]) -> None:
        self._llm = llm
        self._bar = progress_bar(sum(len(request.completion_indices) for request in requests), "Completions")

    def update(self, _: Completion) -> None:
        """Count one completion."""
        self._bar.set_postfix_str(f"{self._llm.stats.tokens_per_s:.0f} tokens/s", refresh=False)
        self._bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bar.close()
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            print("interrupted: what is finished is kept; the same command goes on", file=sys.stderr)
