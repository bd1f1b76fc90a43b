"""Search over branches of a prompt, which can be forked, extended and dropped."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from treeshare.attention import DecodeRow, PrefillChunk, build_layout
from treeshare.config import require_int
from treeshare.engine.plan import max_new_tokens
from treeshare.engine.prompts import items_of
from treeshare.engine.sequence import Request
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence as Items
    from types import TracebackType

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.engine.engine import Engine
    from treeshare.kv import PageTable, Segment


@dataclass(eq=False, slots=True)
class Branch:
    """One continuation of a search's prompt.

    Attributes:
        token_ids: Its tokens.
        logprobs: ``[vocab_size]`` float32, natural log, of the token that comes next.
        cumulative_logprob: Sum of its tokens' log-probabilities.
        pages: Their KV; for the search alone.
    """

    token_ids: tuple[int, ...]
    logprobs: NDArray[np.float32]
    cumulative_logprob: float
    pages: PageTable = field(repr=False)


class TokenSearch:
    """All branches of one prompt, whose KV is stored once; a context manager that frees it.

    The engine must be idle when it begins, and belongs to the search until it is closed: nothing else runs,
    and the weights cannot be changed. A search that nobody holds any more is as good as closed.

    Args:
        engine: Runs the model.
        prompt_token_ids: The whole prompt.
        max_tokens: Maximum number of tokens of a branch.

    Attributes:
        root: The branch without tokens.

    Raises:
        ConfigError: If the engine is busy, another search is open, or the prompt is empty, too long, or has
            unknown token ids.
        BudgetError: If the KV budget does not hold the prompt and a branch.
    """

    def __init__(self, engine: Engine, prompt_token_ids: Items[int], max_tokens: int) -> None:
        engine.require_idle("search")
        request = Request(
            prompt_token_ids=prompt_token_ids,
            params=SamplingParams(max_tokens=max_tokens),
            problem_key=0,
            seed=0,
            completion_indices=range(1),
        )
        self.max_tokens = max_new_tokens(engine.loaded, 0, request)
        engine.clear()
        engine.lend(self)
        self._engine, self._runner, self._store = engine, engine.runner, engine.store
        self._branches: set[Branch] = set()
        self._is_open = True
        try:
            num_tokens = len(prompt_token_ids)
            self._segment: Segment = self._store.segments.new(
                start=0, num_tokens=num_tokens, order=0, parent=None
            )
            self.root = self._prefill(np.asarray(prompt_token_ids, np.int64))
        except BaseException:
            engine.clear()
            raise

    def _prefill(self, tokens: NDArray[np.int64]) -> Branch:
        """Compute the prompt; returns the branch without tokens."""
        size = self._engine.config.prefill_chunk
        for start in range(0, len(tokens), size):
            end = min(start + size, len(tokens))
            layout = build_layout(self._store, [PrefillChunk(self._segment, start, end)], [])
            logits = self._runner.forward(layout, tokens[start:end], [end - start - 1])
            self._segment.num_written = end
        return self._branch((), logits[0], 0.0, self._store.tables.new())

    def fork(self, branch: Branch, n: int = 2) -> list[Branch]:
        """Make ``n`` more branches with the tokens of ``branch``, which stays; each is dropped separately.

        Nothing is computed or copied: they share the KV of these tokens until they are extended.

        Raises:
            ConfigError: If the branch was dropped, ``n`` is below 1, or the search was closed.
        """
        require_int("n", n, low=1)
        self._require_open()
        if not isinstance(branch, Branch) or branch not in self._branches:
            raise ConfigError.of("branch", got="one that was dropped", expected="one of this search")
        forks = [replace(branch, pages=self._store.tables.share(branch.pages)) for _ in range(n)]
        self._branches.update(forks)
        return forks

    def extend(self, steps: Items[tuple[Branch, int]]) -> list[Branch]:
        """Fork branches, each by one token, in one step of the model.

        Args:
            steps: Branches, which stay as they are until dropped, and the token that each fork adds. At most
                as many as the engine has rows.

        Returns:
            The forks, in order.

        Raises:
            ConfigError: If a branch was dropped or has ``max_tokens`` tokens, or there are too many steps.
            BudgetError: If the KV budget does not hold the forks; the search continues without them.
        """
        steps = self._checked_steps(steps)
        if not steps:
            return []
        self._require_open()
        max_steps = self._engine.config.max_num_seqs
        if len(steps) > max_steps:
            raise ConfigError.of("steps", got=len(steps), expected=f"at most max_num_seqs, {max_steps}")
        for branch, token in steps:
            if branch not in self._branches or len(branch.token_ids) >= self.max_tokens:
                raise ConfigError.of("branch", got=len(branch.token_ids), expected="one that can be extended")
            require_int("token", token, low=0, high=len(branch.logprobs) - 1)
        tables = self._store.tables
        pages: list[PageTable] = []
        try:
            for branch, _ in steps:
                pages.append(tables.fork(branch.pages, len(branch.token_ids)))
                tables.forget(pages[-1], len(branch.token_ids))
                if len(branch.token_ids) % self._store.page_size == 0:
                    tables.grow(pages[-1])
        except BaseException:
            tables.free(pages)
            raise
        rows = [
            DecodeRow(self._segment, held, len(branch.token_ids))
            for held, (branch, _) in zip(pages, steps, strict=True)
        ]
        layout = build_layout(self._store, [], rows)
        tokens = np.asarray([token for _, token in steps])
        logits = self._runner.forward(layout, tokens, range(len(steps)))
        return [
            self._branch(
                (*branch.token_ids, token),
                row,
                branch.cumulative_logprob + float(branch.logprobs[token]),
                held,
            )
            for (branch, token), row, held in zip(steps, logits, pages, strict=True)
        ]

    def drop(self, branches: Items[Branch]) -> None:
        """Free branches; those that were dropped before are skipped."""
        for branch in items_of("branches", branches, "a list of branches"):
            if isinstance(branch, Branch) and branch in self._branches:
                self._branches.remove(branch)
                self._store.tables.free([branch.pages])

    def close(self) -> None:
        """Free everything; a second call does nothing."""
        if self._is_open and self._engine.store is self._store:
            self._engine.clear()
        self._is_open = False
        self._branches.clear()

    @staticmethod
    def _checked_steps(steps: Items[tuple[Branch, int]]) -> list[tuple[Branch, int]]:
        """Steps in the one form in which they can be taken."""
        expected = "a list of pairs of a branch and a token"
        pairs = [tuple(items_of("steps", step, expected)) for step in items_of("steps", steps, expected)]
        for pair in pairs:
            if len(pair) != 2 or not isinstance(pair[0], Branch):
                raise ConfigError.of("steps", got=f"{pair!r:.60}", expected=expected)
        return [(branch, getattr(token, "item", lambda token=token: token)()) for branch, token in pairs]

    def _require_open(self) -> None:
        if not self._is_open or self._engine.store is not self._store:
            raise ConfigError("search: it was closed, or its engine was cleared; start another")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _branch(
        self, token_ids: tuple[int, ...], logits: Tensor, cumulative_logprob: float, pages: PageTable
    ) -> Branch:
        branch = Branch(token_ids, self._runner.logprobs(logits), cumulative_logprob, pages)
        self._branches.add(branch)
        return branch
