"""From logits to tokens: draw, split sequences that diverge, end those that are complete."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from treeshare.engine.packing import RowBatch
from treeshare.engine.sequence import Completion, Sequence
from treeshare.sampling import StopChecker, uniforms
from treeshare.sampling.device import sample_on_device
from treeshare.sampling.sampler import Sampled, sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from treeshare.engine.constraints import Constraints
    from treeshare.engine.hooks import ProcessorBatch
    from treeshare.engine.runner import ModelRunner
    from treeshare.engine.sequence import LiveRequest
    from treeshare.engine.thinking import Reasoning
    from treeshare.kv import PageTable
    from treeshare.sampling import Ending

    Observer = Callable[[Sequence, Tensor], None]


BOOKKEEPING = "bookkeeping"
"""The part of a run that is Python around the model: splitting, stop checks, collecting."""


@dataclass(slots=True)
class Tokens:
    """What a batch of rows has drawn.

    Attributes:
        going_on: The sequences that continue; one that diverged is two or more.
        ended: Completions that ended.
        failed: Sequences that drew nothing, or whose stop conditions could not be checked; with the error.
    """

    going_on: list[Sequence] = field(default_factory=list)
    ended: list[Completion] = field(default_factory=list)
    failed: dict[Sequence, Exception] = field(default_factory=dict)


class TokenStep:
    """Draws the next token of every completion.

    Args:
        runner: The model, for its tokenizer and its end-of-sequence tokens; and the store, where a sequence's
            pages are shared when it splits and freed when it ends.
        constraints: Makes the grammars of requests, and computes masks ahead.
        processors: The user's own code between logits and tokens.
        reasoning: How the model marks its reasoning.

    Attributes:
        observe: Called with each sequence and its logits ``[vocab_size]`` before it draws.
        version: Of the weights, noted with each token.
    """

    def __init__(
        self,
        runner: ModelRunner,
        constraints: Constraints,
        processors: ProcessorBatch,
        reasoning: Reasoning,
    ) -> None:
        self._reasoning = reasoning
        self._constraints, self._processors = constraints, processors
        self._runner, self._loaded = runner, runner.loaded
        self._store, self._stopwatch = runner.store, runner.stopwatch
        self.observe: Observer | None = None
        self.version = 0

    def new_sequence(self, live: LiveRequest, completions: list[int]) -> Sequence:
        """A sequence without a token yet, for some completions of a request."""
        stop = StopChecker(
            live.request.params,
            max_tokens=live.max_new_tokens,
            eos_token_ids=self._loaded.eos_token_ids,
            continuation=live.request.continuation(self._loaded.detokenizer),
            criterion=live.request.ends,
        )
        params, grammar, thinking = live.request.params, None, None
        if completions:
            live.opened_reasoning = self._reasoning.opens(live.request.prompt_token_ids)
            grammar = self._constraints.start(params)
            thinking = self._reasoning.start(params, is_open=live.opened_reasoning)
        return Sequence(live, completions, stop, grammar=grammar, thinking=thinking)

    def run(self, batch: RowBatch) -> Tokens:
        """Give each completion of ``batch`` its next token.

        What fails for one sequence fails for its request alone. What fails inside the store is no request's,
        and is raised.
        """
        if self.observe is not None:
            for row, group in zip(batch.logits, batch.sequences, strict=True):
                for sequence in group:
                    self.observe(sequence, self._runner.to_host(row))
        tokens = Tokens()
        self._constraints.wait()
        unused: list[PageTable] = []
        try:
            for part, sampled in self._sampled(batch, tokens.failed):
                self._take(part, sampled, tokens, unused)
        finally:
            self._store.tables.free(unused)  # at once: what is freed may move other pages
        self._constraints.prepare(s.grammar for s in tokens.going_on if s.grammar is not None)
        self._stopwatch.lap(BOOKKEEPING)
        return tokens

    def take_num_masks(self) -> int:
        """How many grammars' masks were computed since the last call."""
        return self._constraints.take_num_masks()

    def _take(self, batch: RowBatch, sampled: Sampled, tokens: Tokens, unused: list[PageTable]) -> None:
        """Append what was drawn; adds to ``tokens``, and to ``unused`` the pages of sequences that ended."""
        first = 0
        for sequence in (sequence for group in batch.sequences for sequence in group):
            num_draws = len(sequence.completions)
            for branch, draw in self._split(sequence, sampled, first):
                self._append(branch, sampled, draw)
                try:
                    ending = self._ending(branch)
                except Exception as error:
                    tokens.failed[branch] = error
                    continue
                if ending is None:
                    tokens.going_on.append(branch)
                else:
                    unused += branch.release_pages()
                    tokens.ended += self._completions(branch, ending)
            first += num_draws

    @staticmethod
    def _ending(sequence: Sequence) -> Ending | None:
        """How a sequence ends with its latest token; None if it continues."""
        grammar, thinking, token = sequence.grammar, sequence.thinking, sequence.token_ids[-1]
        if thinking is not None:
            sequence.thinking = thinking.advance(token)
        if grammar is not None and not (thinking is not None and thinking.takes(token)):
            sequence.grammar = grammar = grammar.advance(token)
        is_complete = grammar is not None and grammar.is_complete
        return sequence.stop.check(sequence.token_ids, is_complete=is_complete)

    def _sampled(self, batch: RowBatch, failed: dict[Sequence, Exception]) -> list[tuple[RowBatch, Sampled]]:
        """The draws of all rows; if that fails, of each row alone, to the same bits, where it does not."""
        try:
            return [(batch, self._sample(batch))]
        except Exception as error:
            if len(batch.sequences) == 1:
                failed |= dict.fromkeys(batch.sequences[0], error)
                return []
        drawn = []
        for row, group in enumerate(batch.sequences):
            drawn += self._sampled(RowBatch(batch.logits[row : row + 1], [group]), failed)
        return drawn

    def _sample(self, batch: RowBatch) -> Sampled:
        pairs = [(row, sequence) for row, group in enumerate(batch.sequences) for sequence in group]
        specs = [group[0].spec() for group in batch.sequences]
        draw_rows = np.repeat([row for row, _ in pairs], [len(s.completions) for _, s in pairs])
        numbers = self._uniforms([s for _, s in pairs])
        hooks = self._processors or None
        if hooks is not None:
            hooks.update([group[0] for group in batch.sequences])
        self._stopwatch.lap(BOOKKEEPING)
        sampler = sample if batch.logits.device.type == "cpu" else sample_on_device
        sampled = sampler(batch.logits, specs, draw_rows, numbers, hooks)
        self._stopwatch.lap("sampling")
        return sampled

    def _uniforms(self, sequences: list[Sequence]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """One uniform per completion, in order; runs of one seed are drawn together."""
        places = [
            (request.seed, request.problem_key, index, len(sequence.token_ids))
            for sequence in sequences
            for request in (sequence.live.request,)
            for index in sequence.completions
        ]
        numbers = np.empty(len(places))
        for seed in {place[0] for place in places}:
            chosen = [i for i, place in enumerate(places) if place[0] == seed]
            keys, indices, positions = zip(*(places[i][1:] for i in chosen), strict=True)
            numbers[chosen] = uniforms(seed, keys, indices, positions)
        return numbers

    def _split(self, sequence: Sequence, sampled: Sampled, first: int) -> list[tuple[Sequence, int]]:
        """One sequence for each different token drawn, each with the index of a draw of it."""
        by_token: dict[int, list[int]] = {}
        for place in range(len(sequence.completions)):
            by_token.setdefault(int(sampled.token_ids[first + place]), []).append(place)
        groups = list(by_token.values())
        completions = list(sequence.completions)
        branches = [
            (self._branch(sequence, [completions[place] for place in group]), first + group[0])
            for group in groups[1:]
        ]
        return [(sequence, first + groups[0][0]), *branches]

    def _branch(self, sequence: Sequence, completions: list[int]) -> Sequence:
        """Some completions as a new sequence; without room for its pages it computes their KV again."""
        branch = sequence.take(completions)
        tables, num_computed = self._store.tables, sequence.num_computed
        if sequence.pages is not None and tables.fork_bytes(num_computed) <= self._store.free_bytes:
            branch.pages = tables.fork(sequence.pages, num_computed)
            branch.num_computed = num_computed
        return branch

    def _append(self, sequence: Sequence, sampled: Sampled, draw: int) -> None:
        sequence.token_ids.append(int(sampled.token_ids[draw]))
        sequence.versions.append(self.version)
        sequence.cumulative_logprob += float(sampled.logprobs[draw])
        top = sampled.top[draw]
        if top is not None:
            sequence.logprobs.append(top)

    @staticmethod
    def _completions(sequence: Sequence, ending: Ending) -> list[Completion]:
        """A sequence's completions, which all end the same way."""
        wants_logprobs = sequence.live.request.params.logprobs is not None
        return [
            Completion(
                request_index=sequence.request_index,
                completion_index=index,
                token_ids=list(sequence.token_ids),
                text=ending.text,
                finish_reason=ending.finish_reason,
                stop_reason=ending.stop_reason,
                cumulative_logprob=sequence.cumulative_logprob,
                logprobs=list(sequence.logprobs) if wants_logprobs else None,
                weight_versions=list(sequence.versions),
                begins_text=sequence.stop.begins_text,
                prompt_logprobs=sequence.live.prompt_logprobs,
                opened_reasoning=sequence.live.opened_reasoning,
            )
            for index in sequence.completions
        ]
