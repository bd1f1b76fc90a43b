"""The step loop: take in, admit, prefill and decode, sample, retire."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.attention import DecodeRow, build_layout, make_backend
from treeshare.devices import default_kv_budget_bytes
from treeshare.engine.pace import Pace
from treeshare.engine.plan import computed_tree, max_new_tokens
from treeshare.engine.scheduler import Scheduler
from treeshare.engine.sequence import LiveRequest
from treeshare.engine.stats import EngineStats
from treeshare.engine.token_step import BOOKKEEPING, RowBatch, TokenStep
from treeshare.errors import ConfigError
from treeshare.kv import KVStore
from treeshare.models import NoAttention, RunWidths, TreeStep, make_adapter
from treeshare.stopwatch import REST, Stopwatch
from treeshare.tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.attention import BatchLayout, PrefillChunk
    from treeshare.config import EngineConfig, FoldCost
    from treeshare.engine.forest import LiveNode
    from treeshare.engine.sequence import Completion, Request, Sequence
    from treeshare.engine.token_step import Observer
    from treeshare.models import LoadedModel, StepAttention


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought.

    Attributes:
        finished: Completions that ended.
        drawn: Sequences that drew a token and go on.
    """

    finished: list[Completion]
    drawn: list[Sequence]


class Engine:
    """Generates completions for requests, which may come at any time, as one tree.

    Not to be used from two threads at once. Whatever ends a step early, an interrupt included, drops all
    requests and their KV; then the engine can be used again.

    Args:
        loaded: A loaded model.
        config: See ``EngineConfig``.
        check_invariants: Poison unused KV and check the store after every step (tests).

    Attributes:
        stats: What the engine measured of itself since ``run`` was last called.
        kv_budget_bytes: Most bytes of KV held at once.
        store: All KV.
        stopwatch: Where the time went since it was restarted; off unless ``config.profile``.
        weights_version: How often the weights were changed.
        widths: Numbers of packed rows that steps may use.
    """

    def __init__(self, loaded: LoadedModel, config: EngineConfig, *, check_invariants: bool = False) -> None:
        self.loaded = loaded
        self.config = config
        self.stats = EngineStats()
        self.kv_budget_bytes = config.kv_budget_bytes or default_kv_budget_bytes(str(loaded.device))
        self.check_invariants = check_invariants
        self.stopwatch = Stopwatch(enabled=config.profile)
        max_rows = config.max_num_seqs + config.prefill_chunk
        self.adapter = make_adapter(loaded, max_rows=max_rows, stopwatch=self.stopwatch)
        self.backend = make_backend(config.backend, loaded.geometry, self.stopwatch, device=loaded.device)
        widths = self.adapter.run_widths(num_prompt_tokens=max_rows, num_rows=max_rows)
        self._any_widths = RunWidths(prefill=widths.decode, decode=widths.decode, head=widths.head)
        self.weights_version = 0
        self._num_requests = 0
        self._fold_cost = config.fold_cost
        self.clear()

    def clear(self) -> None:
        """Drop all requests and their KV, whatever state an interrupt left behind."""
        self.store = KVStore(
            self.loaded.geometry,
            budget_bytes=self.kv_budget_bytes,
            page_size=self.config.page_size,
            poison=self.check_invariants,
            device=self.loaded.device,
        )
        self._scheduler = Scheduler(self.store, self.config)
        self._token_step = TokenStep(self.loaded, self.store, self.stopwatch)
        self._token_step.version = self.weights_version
        self._new: dict[int, tuple[Request, int]] = {}
        self._live: dict[int, LiveRequest] = {}
        self.widths = self._any_widths
        self._pace = Pace(self.config.prefill_chunk)
        self._mixes = False

    @property
    def kv_bytes_in_use(self) -> int:
        """Bytes of KV held now."""
        return self.store.bytes_in_use

    def longest_completion(self, num_prompt_tokens: int) -> int:
        """Maximum tokens of a completion of such a prompt within the model's length and the KV budget."""
        store = self.store
        num_pages = (store.budget_bytes - store.segment_bytes(num_prompt_tokens)) // store.page_bytes
        held = max(num_pages, 0) * store.page_size + 1  # the last token needs no KV
        return min(self.loaded.max_model_len - num_prompt_tokens, held)

    # -- requests --

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._scheduler.is_idle and not self._new

    def add_request(self, request: Request) -> int:
        """Take a request; it joins the tree at the next step, together with others that came since the last.

        Returns:
            Its index, by which its completions refer to it.

        Raises:
            ConfigError: As ``check``.
            BudgetError: As ``check``.
        """
        self._add([request])
        return self._num_requests - 1

    def check(self, requests: Items[Request]) -> list[tuple[Request, int]]:
        """Refuse requests that could never run; each comes back with the most tokens of a completion.

        Raises:
            ConfigError: If a prompt is empty, too long, or has token ids the model does not know.
            BudgetError: If the KV budget does not hold the longest prompt with one completion.
        """
        checked = [(r, max_new_tokens(self.loaded, i, r)) for i, r in enumerate(requests)]
        self._scheduler.check_budget(checked)
        return checked

    def _add(self, requests: Items[Request]) -> None:
        self._new.update(enumerate(self.check(requests), self._num_requests))
        self._num_requests += len(requests)
        self.stats.num_completions += sum(len(request.completion_indices) for request in requests)

    def cancel(self, index: int, completion_indices: Items[int] = ()) -> int:
        """Give up a request, or only some of its completions; not to be called inside a step.

        Returns:
            How many completions will not come: 0 if all are finished or the request is not known.
        """
        count = 0
        if index in self._new:
            request, most = self._new[index]
            chosen = set(completion_indices or request.completion_indices)
            kept = [i for i in request.completion_indices if i not in chosen]
            self._new[index] = replace(request, completion_indices=kept), most
            count = len(request.completion_indices) - len(kept)
        elif index in self._live:
            live = self._live[index]
            chosen = set(completion_indices or live.request.completion_indices)
            count = self._scheduler.cancel(live, chosen)
            self._drop_if_done(live)
        self.stats.num_cancelled += count
        return count

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Change weights between steps; what runs goes on with the new ones, its tokens so far kept.

        All KV is dropped, and computed again where it is needed; only weights of the output layer alone, if
        no other layer shares them, leave it as it is. Not to be called inside a step.

        Args:
            weights: New values by their names in the model's state dict, of the same shapes; others stay.

        Raises:
            ConfigError: If a name is not known or a shape differs; nothing was changed.
        """
        held = self.loaded.model.state_dict()
        for name, value in weights.items():
            shape = tuple(held[name].shape) if name in held else None
            if tuple(value.shape) != shape:
                expected = f"the shape {shape}" if shape else "a name in the model's state dict"
                raise ConfigError.of(f"weights[{name!r}]", got=tuple(value.shape), expected=expected)
        below_head = {one.data_ptr() for one in self.loaded.model.base_model.parameters()}
        with torch.no_grad():
            for name, value in weights.items():
                held[name].copy_(value)
        self._scheduler.drop_logits()
        if any(held[name].data_ptr() in below_head for name in weights):
            self._scheduler.drop_kv()
        self.weights_version += 1
        self._token_step.version = self.weights_version

    def run(
        self,
        requests: Items[Request],
        *,
        observe: Observer | None = None,
        fold_cost: FoldCost | None = None,
    ) -> Generator[Completion, None, None]:
        """Generate; yields each completion as it finishes. Leaving the generator early frees everything.

        Args:
            requests: What to run; ``Completion.request_index`` refers to it. One without completions still
                belongs to the tree: a resumed run computes on the same nodes as an undisturbed one.
            observe: Called for every token drawn, with the sequence and its logits ``[vocab_size]``.
            fold_cost: Which nodes this run folds, instead of by the configuration's: as the run it resumes.

        Raises:
            ConfigError: As ``check``; or if other requests are running.
            BudgetError: As ``check``.
        """
        for result in self.run_steps(requests, observe=observe, fold_cost=fold_cost):
            yield from result.finished

    def run_steps(
        self,
        requests: Items[Request],
        *,
        observe: Observer | None = None,
        fold_cost: FoldCost | None = None,
    ) -> Generator[StepResult, None, None]:
        """As ``run``, but yields what each step brought."""
        if not self.is_idle:
            raise ConfigError("engine: other requests are running; finish, cancel or clear them first")
        started = time.perf_counter()
        self.stopwatch.lap(REST)
        self.stats = EngineStats()
        self.store.peak_bytes = self.store.bytes_in_use
        self._num_requests, self._token_step.observe, self._pace.is_live = 0, observe, False
        self._fold_cost = fold_cost or self.config.fold_cost
        try:
            self._add(requests)
            self._take_in(fit_widths=not self.config.keep_nodes)
            self.stopwatch.lap("planning")
            while not self.is_idle:
                result = self.step()
                self.stats.wall_s = time.perf_counter() - started
                yield result
                self.stopwatch.lap(BOOKKEEPING)
            if not self.config.keep_nodes:
                self.store.check_empty()
        finally:  # also where the caller left after the last completion
            self.widths, self._token_step.observe, self._pace.is_live = self._any_widths, None, True
            self._fold_cost = self.config.fold_cost
            if not self.is_idle:
                self.clear()

    # -- the step --

    def step(self) -> StepResult:
        """Compute a step: chunks of prompts, a token of each running sequence, or both."""
        started = time.perf_counter()
        try:
            result = self._step()
        except BaseException:  # an interrupt may come anywhere, also between a page's owners
            self.clear()
            raise
        self.stats.step_s.append(time.perf_counter() - started)
        return result

    def _step(self) -> StepResult:
        """Requests that came together compute their prompts first: full batches cost least per token.

        Prompts that come while others decode ride along, so few at a time that a step stays short.
        """
        scheduler = self._scheduler
        self._take_in()
        scheduler.admit()
        self._mixes |= self._pace.is_live and bool(scheduler.running)
        rows: list[Sequence] = []
        if self._mixes or not scheduler.is_prefilling:
            scheduler.make_room()
            rows = list(scheduler.running)
        chunks = scheduler.prefill_chunks(self._prompt_rows(len(rows)))
        batches = self._forward(chunks, rows) if rows or chunks else []
        self._count(len(rows), sum(chunk.end - chunk.start for _, chunk in chunks), batches)
        if self._mixes or not scheduler.is_prefilling:
            batches += self._start()
        result = self._sample(batches)
        self.stats.peak_kv_bytes = self.store.peak_bytes
        for completion in result.finished:
            live = self._live[completion.request_index]
            scheduler.finish(live, completion)
            self._drop_if_done(live)
        if self.check_invariants:
            self.store.check_invariants()
            scheduler.check_invariants()
        return result

    def _take_in(self, *, fit_widths: bool = False) -> None:
        """Graft the new requests' tree onto the live one and queue their completions."""
        if not self._new:
            return
        new, self._new = self._new, {}
        requests, lengths = zip(*new.values(), strict=True)
        found = PromptTree.from_prompts([request.prompt_token_ids for request in requests])
        counts = [len(request.completion_indices) for request in requests]
        self.stats.unique_tokens += sum(node.num_tokens for node in found.nodes)
        self.stats.logical_tokens += sum(
            count * len(r.prompt_token_ids) for count, r in zip(counts, requests, strict=True)
        )
        scheduler, self._mixes = self._scheduler, not self._scheduler.is_idle
        if fit_widths:
            rows = min(sum(request.params.n for request in requests), self.config.max_num_seqs)
            self.widths = self.adapter.run_widths(num_prompt_tokens=self.stats.unique_tokens, num_rows=rows)
        tree = computed_tree(found, self.config, self._fold_cost)
        nodes = scheduler.place(tree, requests, lengths, self._fold_cost)
        in_order = sorted(zip(new.items(), nodes, counts, strict=True), key=lambda item: item[1].order)
        sequences: list[Sequence] = []
        first_rank = self._num_requests - len(new)
        for rank, ((index, (request, most)), node, count) in enumerate(in_order, first_rank):
            live = LiveRequest(index, request, most, rank, node, count)
            if count:
                self._live[index] = live
            sequences.append(self._token_step.new_sequence(live, list(request.completion_indices)))
        scheduler.add(sequences)

    def _prompt_rows(self, num_decoding: int) -> int:
        """Prompt tokens of a step beside ``num_decoding`` rows."""
        widths = self.widths.decode if num_decoding else self.widths.prefill
        most = self._pace.prompt_rows(num_decoding, self._scheduler.num_starting)
        return min(most, widths[-1] - num_decoding)

    def _forward(self, chunks: list[tuple[LiveNode, PrefillChunk]], rows: list[Sequence]) -> list[RowBatch]:
        """Compute a token of each row and the chunks; keep the logits from which completions will start.

        Returns:
            The rows that draw their next token now, with their logits.
        """
        started = time.perf_counter()
        self.stopwatch.enter("decode" if rows else "prefill", before="scheduling")
        decode_rows = [DecodeRow(s.segment, s.pages, s.num_computed) for s in rows]
        layout = build_layout(
            self.store, [chunk for _, chunk in chunks], decode_rows, sharing=self.config.sharing
        )
        tokens = np.empty(layout.num_rows, np.int64)
        places = layout.decode_rows.tolist()
        tokens[places] = [s.token_ids[s.num_computed] for s in rows]
        ends: dict[LiveNode, int] = {}
        for (node, chunk), place in zip(chunks, layout.causal, strict=True):
            tokens[place.first_row : place.last_row] = node.token_ids[chunk.start : chunk.end]
            if chunk.end == node.num_tokens and node.num_unstarted:
                ends[node] = place.last_row - 1
        drawing = [(s, place) for s, place in zip(rows, places, strict=True) if s.draws_next]
        logits = self.adapter.forward(
            tokens,
            layout.positions,
            self._attention(layout),
            [*(place for _, place in drawing), *ends.values()],
            body_widths=self.widths.decode if rows else self.widths.prefill,
            head_widths=self.widths.head,
        )
        for node, row in zip(ends, logits[len(drawing) :], strict=True):
            node.logits = row.clone()
        for sequence in rows:
            sequence.num_computed += 1
        self.stopwatch.enter("between", before=BOOKKEEPING)
        seconds, share = time.perf_counter() - started, len(rows) / layout.num_rows
        self.stats.prefilled_tokens += layout.num_rows - len(rows)
        self.stats.decode_s += seconds * share
        self.stats.prefill_s += seconds * (1 - share)
        return [RowBatch(logits[: len(drawing)], [[s] for s, _ in drawing])] if drawing else []

    def _attention(self, layout: BatchLayout) -> StepAttention:
        """What attention does in a step; the layout is made by now."""
        self.stopwatch.lap("layout")
        is_off = self.config.attention == "off"
        return NoAttention() if is_off else TreeStep(self.backend, layout, self.stopwatch)

    def _start(self) -> list[RowBatch]:
        """Begin the admitted completions whose prompt is computed, from the logits of its last token."""
        starting = self._scheduler.start_ready()
        if not starting:
            return []
        is_lazy = self.config.lazy_divergence
        groups = [[sequence] if is_lazy else sequence.singles() for sequence, _ in starting]
        return [RowBatch(torch.stack([logits for _, logits in starting]), groups)]

    def _sample(self, batches: list[RowBatch]) -> StepResult:
        """Draw the next tokens; keeps what goes on, depth-first, and returns what was drawn."""
        started = time.perf_counter()
        scheduler = self._scheduler
        drawing = {sequence for batch in batches for group in batch.sequences for sequence in group}
        running = [sequence for sequence in scheduler.running if sequence not in drawing]
        result = StepResult([], [])
        for batch in batches:
            going_on, ended = self._token_step.run(batch)
            result.drawn.extend(going_on)
            result.finished.extend(ended)
        scheduler.running = sorted(running + result.drawn, key=lambda sequence: sequence.segment.order)
        self.stats.num_tokens += len(result.finished) + sum(len(s.completions) for s in result.drawn)
        self.stats.num_finished += len(result.finished)
        self.stats.sampling_s += time.perf_counter() - started
        return result

    def _count(self, num_rows: int, num_prompt_tokens: int, batches: list[RowBatch]) -> None:
        """Note what a step computed, and how many of its decoding rows drew a token."""
        stats, is_full = self.stats, bool(self._scheduler.waiting)
        num_drawing = sum(len(batch.sequences) for batch in batches)
        self._pace.note(num_rows + num_prompt_tokens)
        stats.step_rows.append((num_rows, num_prompt_tokens))
        stats.num_preemptions += self._scheduler.num_preemptions
        self._scheduler.num_preemptions = 0
        if num_rows:
            stats.num_steps += 1
            stats.num_rows += num_rows
            stats.num_replayed += num_rows - num_drawing
            stats.num_full_steps += is_full
            stats.num_full_rows += num_drawing * is_full

    def _drop_if_done(self, live: LiveRequest) -> None:
        if not live.num_unfinished:
            self._live.pop(live.index, None)
