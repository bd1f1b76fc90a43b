"""The requests that an engine holds: new ones until they join the tree, live ones until they are finished."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from treeshare.engine.plan import computed_tree, max_new_tokens
from treeshare.engine.sequence import LiveRequest
from treeshare.tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from treeshare.config import EngineConfig
    from treeshare.engine.constraints import Constraints
    from treeshare.engine.residency import Residency
    from treeshare.engine.scheduler import Scheduler
    from treeshare.engine.sequence import Completion, Request, Sequence
    from treeshare.engine.stats import EngineStats
    from treeshare.engine.thinking import Reasoning
    from treeshare.engine.token_step import TokenStep
    from treeshare.models import LoadedModel


class Intake:
    """Takes requests, joins them to the tree, and holds those that are not finished.

    Args:
        loaded: The model; its length and vocabulary bound a request.
        config: How the tree is shared and folded.
        residency: Where prompts get their nodes.
        scheduler: Where completions are queued.
        token_step: Makes their sequences.
        constraints: Checks and makes their rules.
        reasoning: Refuses budgets of a model that marks no reasoning.

    Attributes:
        num_requests: Requests taken; the index of the next one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: EngineConfig,
        residency: Residency,
        scheduler: Scheduler,
        token_step: TokenStep,
        constraints: Constraints,
        reasoning: Reasoning,
    ) -> None:
        self._constraints, self._reasoning = constraints, reasoning
        self._loaded, self._config = loaded, config
        self._residency, self._scheduler, self._token_step = residency, scheduler, token_step
        self._new: dict[int, tuple[Request, int]] = {}  # with the maximum tokens of a completion
        self._live: dict[int, LiveRequest] = {}
        self.num_requests = 0

    @property
    def is_empty(self) -> bool:
        """Whether no request waits to join the tree."""
        return not self._new

    def check(self, requests: Items[Request]) -> list[tuple[Request, int]]:
        """See ``Engine.check``."""
        checked = [(request, max_new_tokens(self._loaded, i, request)) for i, request in enumerate(requests)]
        for request in {id(own.params): own for own in requests}.values():
            self._constraints.check(request)
            self._reasoning.check(request.params)
        self._residency.check_budget(checked)
        return checked

    def longest_completion(self, num_prompt_tokens: int) -> int:
        """See ``Engine.longest_completion``."""
        store = self._residency.store
        left = store.budget_bytes - store.segments.bytes_of(num_prompt_tokens)
        held = store.tables.max_tokens(left) + 1  # the last token needs no KV
        return min(self._loaded.max_model_len - num_prompt_tokens, held)

    def add(self, requests: Items[Request]) -> None:
        """Take requests, by ascending indices; they join the tree together.

        Raises:
            ConfigError: As ``check``; none was taken.
            BudgetError: Likewise.
        """
        self._new.update(enumerate(self.check(requests), self.num_requests))
        self.num_requests += len(requests)

    def cancel(self, index: int, completion_indices: Items[int] | None) -> int:
        """See ``Engine.cancel``."""
        if index in self._new:
            request, num_tokens = self._new[index]
            chosen = set(request.completion_indices if completion_indices is None else completion_indices)
            kept = [i for i in request.completion_indices if i not in chosen]
            self._new[index] = replace(request, completion_indices=kept), num_tokens
            return len(request.completion_indices) - len(kept)
        if index in self._live:
            live = self._live[index]
            of_live = live.request.completion_indices if completion_indices is None else completion_indices
            count = self._scheduler.cancel(live, of_live)
            self._drop_if_done(live)
            return count
        return 0

    def join_tree(self, stats: EngineStats) -> None:
        """Graft the new requests' tree onto the live one and queue their completions.

        Args:
            stats: Counts the prompts' tokens.
        """
        if not self._new:
            return
        new, self._new = self._new, {}
        requests, lengths = zip(*new.values(), strict=True)
        found = PromptTree.from_prompts([request.prompt_token_ids for request in requests])
        stats.note_prompts(found, requests)
        tree = computed_tree(found, self._config)
        nodes = self._residency.place(tree, requests, lengths, self._config.fold_cost)
        in_order = sorted(zip(new.items(), nodes, strict=True), key=lambda item: item[1].order)
        sequences: list[Sequence] = []
        first_rank = self.num_requests - len(new)
        for rank, ((index, (request, num_tokens)), node) in enumerate(in_order, first_rank):
            completions = list(request.completion_indices)
            rules = self._constraints.rules(request.params)
            live = LiveRequest(index, request, num_tokens, rank, node, len(completions), rules)
            if completions:
                self._live[index] = live
            sequences.append(self._token_step.new_sequence(live, completions))
        self._scheduler.add(sequences)

    def finish(self, completion: Completion) -> None:
        """A completion has ended: release its row, and the nodes that nothing needs any more."""
        live = self._live[completion.request_index]
        self._scheduler.finish(live, completion)
        self._drop_if_done(live)

    def _drop_if_done(self, live: LiveRequest) -> None:
        if not live.num_unfinished:
            if live.lacks_prompt_logprobs:
                self._residency.scores.forget(live)
            self._live.pop(live.index, None)
