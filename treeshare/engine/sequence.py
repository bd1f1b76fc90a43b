"""What runs: a request, the sequences that decode it, and its completions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from treeshare.sampling.sampler import RowSpec
from treeshare.text import Continuation

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Sequence as Items

    from treeshare.engine.forest import LiveNode
    from treeshare.engine.node_scores import PromptLogprobs
    from treeshare.engine.thinking import ThinkingState
    from treeshare.kv import KVStore, PageTable, Segment
    from treeshare.sampling import SamplingParams, StopChecker
    from treeshare.sampling.grammar import GrammarState
    from treeshare.sampling.masks import TokenRules
    from treeshare.sampling.sampler import TokenLogprob
    from treeshare.text import Detokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One problem: a prompt and the completions wanted of it.

    Attributes:
        prompt_token_ids: The whole prompt.
        params: How to sample.
        problem_key: 64-bit key of the problem in the random numbers (``sampling.problem_key``).
        seed: Run seed.
        completion_indices: Which completions; each depends on its index, not on which others are asked for.
        ends: Beside what ``params`` say, ends a completion at the token with which it returns True of all its
            tokens.
    """

    prompt_token_ids: Items[int]
    params: SamplingParams
    problem_key: int
    seed: int
    completion_indices: Items[int]
    ends: Callable[[Items[int]], bool] | None = None

    def continuation(self, detokenizer: Detokenizer | None) -> Continuation | None:
        """The text of its completions; None without a tokenizer."""
        if detokenizer is None:
            return None
        skip_special_tokens = self.params.skip_special_tokens
        return Continuation(detokenizer, self.prompt_token_ids, skip_special_tokens=skip_special_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One finished completion.

    Attributes:
        request_index: Which request of the run.
        completion_index: Which of its completions.
        token_ids: Everything generated, a final stop token included.
        text: What continues the prompt's text, cut at the stop string; empty without a tokenizer.
        finish_reason: ``stop`` or ``length``.
        stop_reason: The stop string or stop token id; None at end-of-sequence and at ``length``.
        cumulative_logprob: Natural log of the model's probability of ``token_ids``, before temperature.
        logprobs: Per token the most likely tokens, when asked for.
        weight_versions: Per token how often the weights had been changed when it was drawn.
        begins_text: Whether no text of the prompt stands before its own.
        opened_reasoning: Whether its prompt ends inside the model's reasoning.
        prompt_logprobs: Of the prompt, when asked for; all completions of a request have the same list.
    """

    request_index: int
    completion_index: int
    token_ids: list[int]
    text: str
    finish_reason: str
    stop_reason: int | str | None
    cumulative_logprob: float
    logprobs: list[list[TokenLogprob]] | None
    weight_versions: list[int]
    begins_text: bool = False
    opened_reasoning: bool = False
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(eq=False, slots=True)
class LiveRequest:
    """A request that the engine holds.

    Attributes:
        index: As ``Engine.add_request`` returned it.
        request: What was asked for.
        max_new_tokens: Maximum number of tokens of a completion, within the model's length.
        rank: Place in the order of admission.
        node: Where its prompt ends.
        num_unfinished: Completions that are neither finished nor cancelled.
        rules: Which tokens its completions may draw; None for all.
        prompt_logprobs: Of its prompt, once they are known, where asked for.
        opened_reasoning: Whether its prompt ends inside the model's reasoning.
    """

    index: int
    request: Request
    max_new_tokens: int
    rank: int
    node: LiveNode
    num_unfinished: int
    rules: TokenRules | None = None
    prompt_logprobs: PromptLogprobs | None = None
    opened_reasoning: bool = False

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """Whether its prompt's log-probabilities are asked for and not yet known."""
        return self.request.params.prompt_logprobs is not None and self.prompt_logprobs is None


@dataclass(eq=False, slots=True)
class Sequence:
    """One decoding row: the completions of a request whose tokens have been identical so far.

    Its row computes the KV of token ``num_computed`` and draws the next one if that was the last. A sequence
    that lost its pages, or never had any, computes its tokens again in the same way, hence to the same bits.

    Attributes:
        live: The request.
        completions: Which of its completions.
        stop: Watches the tokens.
        token_ids: Generated so far.
        versions: Per token, the version of the weights that it was drawn with.
        pages: Private KV of the first ``num_computed`` tokens; None: it has none.
        num_computed: Generated tokens whose KV is stored.
        cumulative_logprob: Of ``token_ids``.
        logprobs: Per token, where asked for.
        grammar: Where its request's grammar is after ``token_ids``; None without one.
        thinking: Where it is in its reasoning, if something depends on that.
    """

    live: LiveRequest
    completions: list[int]
    stop: StopChecker
    token_ids: list[int] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    pages: PageTable | None = None
    num_computed: int = 0
    cumulative_logprob: float = 0.0
    logprobs: list[list[TokenLogprob]] = field(default_factory=list)
    grammar: GrammarState | None = None
    thinking: ThinkingState | None = None

    @property
    def request_index(self) -> int:
        """Index of its request."""
        return self.live.index

    @property
    def priority(self) -> tuple[int, int]:
        """Order of admission, lowest first; the highest is preempted first."""
        return self.live.rank, self.completions[0]

    @property
    def segment(self) -> Segment:
        """The KV of its prompt's last node."""
        segment = self.live.node.segment
        assert segment is not None, "the prompt of a row has KV"
        return segment

    @property
    def num_pages(self) -> int:
        """Pages that its tokens with KV fill."""
        return 0 if self.pages is None else len(self.pages)

    @property
    def draws_next(self) -> bool:
        """Whether the token after the one that its row computes is still to be drawn."""
        return self.num_computed + 1 >= len(self.token_ids)

    def spec(self) -> RowSpec:
        """How its next token is drawn; raises ``ConfigError`` if no token may come."""
        request, rules = self.live.request, self.live.rules
        thinking = self.thinking
        waits = thinking is not None and thinking.is_open
        mask = None if self.grammar is None or waits else self.grammar.mask()
        if thinking is not None:
            mask, is_forced = thinking.mask(mask)
            rules = None if is_forced else rules
        if rules is not None:
            mask = rules.mask(self.token_ids, mask)
        return RowSpec(request.params, self.token_ids, request.prompt_token_ids, mask)

    def take(self, completions: list[int]) -> Sequence:
        """Move some of the completions to a new sequence with the same tokens and without KV."""
        taken = set(completions)
        self.completions = [index for index in self.completions if index not in taken]
        return Sequence(
            self.live,
            completions,
            self.stop.fork(),
            list(self.token_ids),
            list(self.versions),
            cumulative_logprob=self.cumulative_logprob,
            logprobs=list(self.logprobs),
            grammar=self.grammar,
            thinking=self.thinking,
        )

    def singles(self) -> list[Sequence]:
        """Split into sequences of one completion each; this one keeps its first."""
        return [self, *(self.take([index]) for index in self.completions[1:])]

    def drop_kv(self, store: KVStore) -> None:
        """Free the pages; what they held will be computed again."""
        store.tables.free(self.release_pages())

    def release_pages(self) -> list[PageTable]:
        """Its pages, for the caller to free; what they hold will be computed again."""
        pages, self.pages, self.num_computed = self.pages, None, 0
        return [] if pages is None else [pages]
