"""Log-probabilities of given continuations: all pairs of a context and a continuation on one tree."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from treeshare.attention import PrefillChunk, build_layout
from treeshare.config import MAX_PREFILL_ROWS
from treeshare.engine.plan import require_text_tokens
from treeshare.engine.prompts import items_of
from treeshare.engine.runner import MAX_LOGITS_BYTES
from treeshare.engine.score_tree import depth_first, held_bytes, make_paths, move_spans, path_bytes
from treeshare.engine.stats import EngineStats
from treeshare.errors import BudgetError, ConfigError
from treeshare.tree import PromptTree
from treeshare.tree.tokens import as_token_array

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from treeshare.engine.engine import Engine
    from treeshare.engine.score_tree import ScoreNode, Span
    from treeshare.tree.tokens import TokenArray

Pair = tuple["Sequence[int]", "Sequence[int]"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """How likely a continuation is after its context.

    Attributes:
        logprobs: Natural log of each token's probability, given all before it.
        is_greedy: Whether each token is the most likely, the lowest id on a tie.
    """

    logprobs: list[float]
    is_greedy: list[bool]

    @property
    def total(self) -> float:
        """Natural log of the whole continuation's probability."""
        return sum(self.logprobs)

    @property
    def all_greedy(self) -> bool:
        """Whether greedy decoding would give the continuation."""
        return all(self.is_greedy)


def score(engine: Engine, pairs: Sequence[Pair], done: Callable[[int], object]) -> list[Score]:
    """Log-probabilities of continuations; see ``LLM.score``.

    The engine must be idle; whatever KV it kept is dropped.

    Args:
        engine: Runs the model.
        pairs: Token ids of a context and of a continuation.
        done: Called after each step with the number of pairs that it finished.

    Raises:
        ConfigError: If the engine is busy, a search is open, a context is empty, or a pair is too long or has
            unknown token ids.
        DataError: If token ids are not flat rows of integers.
        BudgetError: If the KV budget does not hold the longest pair alone.
    """
    engine.require_idle("score")
    given = items_of("pairs", pairs, "a list of pairs of a context and a continuation")
    checked = [_checked(engine, i, pair) for i, pair in enumerate(given)]
    engine.clear()
    try:
        return _Scoring(engine, checked).run(done)
    finally:
        engine.clear()


def _checked(engine: Engine, index: int, pair: Pair) -> tuple[TokenArray, TokenArray]:
    loaded = engine.loaded
    names = (f"pairs[{index}]: context", f"pairs[{index}]: continuation")
    parts = items_of(f"pairs[{index}]", pair, "a context and a continuation")
    if len(parts) != 2:
        raise ConfigError.of(f"pairs[{index}]", got=len(parts), expected="a context and a continuation")
    context, continuation = (as_token_array(ids, name) for ids, name in zip(parts, names, strict=True))
    if not len(context):
        raise ConfigError.of(
            names[0], got="no tokens", expected="at least one, such as beginning-of-sequence"
        )
    for ids, name in zip((context, continuation), names, strict=True):
        if len(ids) and ids.max() >= loaded.vocab_size:
            raise ConfigError.of(name, got=int(ids.max()), expected=f"token ids in [0, {loaded.vocab_size})")
    require_text_tokens(names[0], context.tolist() if loaded.other_tokens else (), loaded.other_tokens)
    length = len(context) + len(continuation)
    if length > loaded.max_model_len + 1:  # the last token is predicted, not read
        raise ConfigError.of(
            f"pairs[{index}]", got=f"{length} tokens", expected=f"at most {loaded.max_model_len + 1}"
        )
    return context, continuation


class _Scoring:
    """One call's tree and its progress.

    Args:
        engine: Idle and cleared.
        pairs: Contexts and continuations, checked.
    """

    def __init__(self, engine: Engine, pairs: Sequence[tuple[TokenArray, TokenArray]]) -> None:
        self._engine, self._store = engine, engine.store
        self._chunk = engine.config.prefill_chunk
        vocab_size = engine.loaded.vocab_size
        self._runner = engine.runner
        self._max_rows = max(min(MAX_PREFILL_ROWS, self._runner.max_rows), self._chunk)
        max_logits = min(MAX_LOGITS_BYTES // (4 * vocab_size), self._runner.max_logits_rows)
        self._max_logits = max(max_logits, self._chunk)
        self._logprobs = [np.zeros(len(continuation), np.float32) for _, continuation in pairs]
        self._is_greedy = [np.zeros(len(continuation), np.bool_) for _, continuation in pairs]
        self._num_left = np.array([len(continuation) for _, continuation in pairs])
        roots = make_paths(pairs)
        need, longest = path_bytes(roots, self._store)
        if need > self._store.budget_bytes:
            tokens = sum(map(len, pairs[longest]))
            raise BudgetError(
                f"kv_budget_bytes: got {self._store.budget_bytes}, expected at least {need}: "
                f"pairs[{longest}] has {tokens} tokens"
            )
        nodes = list(depth_first(roots, self._chunk))
        self._reserve = max((held_bytes(node, self._store) for node in nodes), default=0)
        if self._reserve > self._store.budget_bytes:  # no room for nodes that are only copied from
            nodes, self._reserve = list(depth_first(roots, None)), need
        for order, node in enumerate(nodes):
            node.order = order
            move_spans(node)
            for above in (node.parent, node.source):
                if above is not None:
                    above.num_waiting += 1
        self._waiting = nodes[::-1]
        rows = [np.concatenate(pair)[:-1] for pair in pairs if len(pair[1])]
        self._stats = EngineStats(
            logical_tokens=sum(map(len, rows)),
            unique_tokens=sum(node.num_tokens for node in PromptTree.from_prompts(rows).nodes),
        )

    def run(self, done: Callable[[int], object]) -> list[Score]:
        """Compute everything; calls ``done`` with the number of pairs that each step finished."""
        engine, store = self._engine, self._store
        engine.stats, started = self._stats, time.perf_counter()
        done(int((self._num_left == 0).sum()))
        while self._waiting:
            step_started = time.perf_counter()
            num_left = np.count_nonzero(self._num_left)
            chunks = self._pack()
            assert chunks, "the first node that waits always has room"
            self._compute(chunks)
            self._free_finished([node for node, _ in chunks])
            if engine.check_invariants:
                store.check_invariants()
            num_tokens = sum(chunk.end - chunk.start for _, chunk in chunks)
            self._stats.steps.note(time.perf_counter() - step_started, 0, num_tokens)
            self._stats.prefill_s = self._stats.wall_s = time.perf_counter() - started
            self._stats.peak_kv_bytes = store.peak_bytes
            done(int(num_left - np.count_nonzero(self._num_left)))
        store.check_empty()
        return [
            Score(logprobs=logprobs.tolist(), is_greedy=is_greedy.tolist())
            for logprobs, is_greedy in zip(self._logprobs, self._is_greedy, strict=True)
        ]

    def _pack(self) -> list[tuple[ScoreNode, PrefillChunk]]:
        """The next chunks, depth-first, as far as rows, logits and KV allow; blocked nodes wait."""
        chunks: list[tuple[ScoreNode, PrefillChunk]] = []
        blocked: list[ScoreNode] = []
        num_rows, num_logits = self._max_rows, self._max_logits
        while self._waiting:
            node = self._waiting[-1]
            if not node.can_begin:
                blocked.append(self._waiting.pop())
                continue
            if node.segment is None and not self._begin(node, is_first=not chunks and not blocked):
                break
            assert node.segment is not None
            while not node.is_packed:
                start = node.num_packed
                end = min(start + self._chunk, node.num_tokens)
                wanted = len(node.wanted(start, end))
                if end - start > num_rows or wanted > num_logits:
                    break
                num_rows, num_logits = num_rows - (end - start), num_logits - wanted
                chunks.append((node, PrefillChunk(node.segment, start, end)))
                node.num_packed = end
            if not node.is_packed:
                break
            self._waiting.pop()
        self._waiting.extend(reversed(blocked))
        return chunks

    def _begin(self, node: ScoreNode, *, is_first: bool) -> bool:
        """Make a node's segment and copy what it copies, if there is room; returns whether there is.

        Every node but the first that waits must leave room for a whole path, so that the first one always
        finds room.
        """
        store = self._store
        room = store.free_bytes - (0 if is_first else self._reserve)
        if store.segments.bytes_of(node.num_tokens) > room:
            assert not is_first, "a path and what is copied along it fit into the budget"
            return False
        node.segment = store.segments.new(
            start=node.start,
            num_tokens=node.num_tokens,
            order=node.order,
            parent=None if node.parent is None else node.parent.segment,
        )
        if node.source is not None and node.source.segment is not None:
            store.segments.copy_tokens(node.source.segment, node.segment, node.num_copied)
            node.num_packed = node.num_copied
        for above in (node.parent, node.source):
            if above is not None:
                above.num_waiting -= 1
                self._free_finished([above])
        return True

    def _free_finished(self, nodes: Sequence[ScoreNode]) -> None:
        """Free the KV of computed nodes that nothing more will attend to or copy from."""
        for node in nodes:
            segment = node.segment
            if segment is not None and segment.num_written == node.num_tokens and not node.num_waiting:
                node.segment = None
                self._store.segments.release(segment)

    def _compute(self, chunks: Sequence[tuple[ScoreNode, PrefillChunk]]) -> None:
        """Run the model on ``chunks`` and store what their rows predict."""
        layout = build_layout(self._store, [chunk for _, chunk in chunks], [])
        tokens = np.concatenate([node.token_ids[chunk.start : chunk.end] for node, chunk in chunks])
        predicted = [
            (place.first_row, node, chunk, node.wanted(chunk.start, chunk.end))
            for (node, chunk), place in zip(chunks, layout.causal, strict=True)
        ]
        wanted = [first + row - chunk.start for first, _, chunk, rows in predicted for row in rows]
        logits = self._runner.forward(layout, tokens, wanted)
        for _, chunk in chunks:
            chunk.segment.num_written = chunk.end
        self._stats.prefilled_tokens += layout.num_rows
        if len(logits):
            self._note(logits, [(node, rows) for _, node, _, rows in predicted])

    def _note(self, logits: Tensor, predicted: Sequence[tuple[ScoreNode, list[int]]]) -> None:
        """Store the log-probability of each token that a row of ``logits`` predicts."""
        places: list[int] = []
        parts: list[Span] = []
        first = 0
        for node, rows in predicted:
            place_of = dict(zip(rows, range(first, first + len(rows)), strict=True))
            first += len(rows)
            for span in node.spans if rows else ():
                part = span.part(rows[0], rows[-1] + 1)
                if part is not None:
                    parts.append(part)
                    places += [place_of[part.row + i] for i in range(len(part.token_ids))]
        wanted = np.concatenate([part.token_ids for part in parts])
        values, greedy = self._runner.token_logprobs(logits, np.array(places), wanted.astype(np.int64))
        taken = 0
        for part in parts:
            count = len(part.token_ids)
            target = slice(part.first, part.first + count)
            self._logprobs[part.pair][target] = values[taken : taken + count]
            self._is_greedy[part.pair][target] = greedy[taken : taken + count]
            self._num_left[part.pair] -= count
            taken += count
