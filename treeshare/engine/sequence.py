"""What runs: a request, the sequences that decode it, and the completions that come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from treeshare.kv import KVStore, Page, Segment
    from treeshare.sampling import SamplingParams, StopChecker
    from treeshare.sampling.sampler import TokenLogprob


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One problem: a prompt and the completions wanted of it.

    Attributes:
        prompt_token_ids: The whole prompt.
        params: How to sample.
        problem_key: 64-bit key of the problem in the random numbers (``sampling.problem_key``).
        seed: Run seed.
        completion_indices: Which completions; each depends on its index, not on which others are asked for.
    """

    prompt_token_ids: Items[int]
    params: SamplingParams
    problem_key: int
    seed: int
    completion_indices: Items[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished completion.

    Attributes:
        request_index: Which request of the run.
        completion_index: Which of its completions.
        token_ids: Everything generated, a final stop token included.
        text: Decoded, cut at the stop string; empty without a tokenizer.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id; None at end-of-sequence and at ``length``.
        cumulative_logprob: Natural log of the model's probability of ``token_ids``, before temperature.
        logprobs: Per token the likeliest tokens, when asked for.
    """

    request_index: int
    completion_index: int
    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: int | str | None
    cumulative_logprob: float
    logprobs: list[list[TokenLogprob]] | None


@dataclass(eq=False, slots=True)
class Sequence:
    """One decoding row: the completions of a request whose tokens have been identical so far.

    ``token_ids`` are generated; all but the last have their KV in ``pages``.
    """

    request_index: int
    segment: Segment
    completions: list[int]
    stop: StopChecker
    token_ids: list[int] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    cumulative_logprob: float = 0.0
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)

    @property
    def num_private(self) -> int:
        """Generated tokens whose KV is stored."""
        return max(len(self.token_ids) - 1, 0)

    def fork(self, completions: list[int], store: KVStore) -> Sequence:
        """A sequence with the same tokens for other completions, its pages copied."""
        return Sequence(
            self.request_index,
            self.segment,
            completions,
            self.stop.fork(),
            list(self.token_ids),
            [store.copy_page(page) for page in self.pages],
            self.cumulative_logprob,
            list(self.logprobs),
        )
