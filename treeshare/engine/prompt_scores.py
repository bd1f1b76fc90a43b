"""Log-probabilities of prompts' own tokens, taken from the rows that compute the prompts.

A node's rows are the same for all prompts below it, so its log-probabilities are computed once, like its KV;
only what follows its last token differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.devices import upload
from treeshare.engine.node_scores import NodeScores
from treeshare.sampling.sampler import TokenLogprob
from treeshare.sampling.softmax import log_softmax

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Sequence as Items

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.engine.forest import LiveNode
    from treeshare.engine.node_scores import PromptLogprobs, Top
    from treeshare.engine.prefill_queue import PrefillQueue
    from treeshare.engine.sequence import LiveRequest


def watch(live: LiveRequest) -> Iterator[tuple[LiveNode, int]]:
    """Ask each node of a request's path for its prompt's log-probabilities.

    Yields:
        Nodes of which rows are lacking, each with the first such row.
    """
    num_top = live.request.params.prompt_logprobs
    assert num_top is not None
    for node in live.node.path():
        scores = node.scores
        if scores is None or not scores.covers(num_top):
            node.scores = scores = NodeScores(num_top, {} if scores is None else scores.wanted)
        end = node.start + node.num_tokens
        tokens = live.request.prompt_token_ids
        scores.wanted[live] = int(tokens[end]) if end < len(tokens) else None
        row = scores.lacks_from(node.num_tokens)
        if row is not None:
            yield node, row


def copy_scores(source: LiveNode, target: LiveNode, num_common: int) -> int:
    """Copy what two nodes that begin alike have in common.

    Args:
        source: A sibling.
        target: A node whose KV may be copied; nothing is copied unless somebody asks for its scores.
        num_common: Tokens with which both begin.

    Returns:
        The first tokens of ``target`` whose rows need not be computed.
    """
    asked, known = target.scores, source.scores
    if asked is None or asked.lacks_from(target.num_tokens) is None:
        return num_common
    num_rows = len(asked.chosen)
    if known is not None and known.covers(asked.num_top):
        num_rows = max(num_rows, min(len(known.chosen), num_common - 1))
        asked.chosen += known.chosen[len(asked.chosen) : num_rows]
        asked.top += known.top[len(asked.top) : num_rows]
    return min(num_rows, num_common)


def collect(live: LiveRequest) -> PromptLogprobs | None:
    """A request's log-probabilities, if its nodes know all of them."""
    wanted = live.request.params.prompt_logprobs
    assert wanted is not None
    path = live.node.path()
    if any(node.scores is None or node.scores.lacks_from(node.num_tokens) is not None for node in path):
        return None
    result: PromptLogprobs = [None]
    tokens = live.request.prompt_token_ids
    for node in path:
        scores = node.scores
        assert scores is not None
        for token, chosen, top in zip(node.token_ids[1:].tolist(), scores.chosen, scores.top, strict=True):
            result.append(_entries(token, chosen, top, wanted))
        if len(result) < len(tokens):
            token = int(tokens[len(result)])
            assert scores.after_top is not None
            result.append(_entries(token, scores.after[token], scores.after_top, wanted))
    assert len(result) == len(tokens)
    return result


class PromptScoring:
    """Has prompts' log-probabilities computed beside their KV.

    Args:
        queue: The nodes that are being computed.
    """

    def __init__(self, queue: PrefillQueue) -> None:
        self._queue = queue

    def want(self, live: LiveRequest) -> None:
        """Have those of a prompt computed, as far as its nodes lack them."""
        for node, row in watch(live):
            if node.segment is not None:
                self._queue.add_again(node, row)

    def finish(self, live: LiveRequest) -> bool:
        """Give a request those of its prompt, if all are known; returns whether they are."""
        live.prompt_logprobs = collect(live)
        if live.prompt_logprobs is None:
            return False
        self.forget(live)
        return True

    def forget(self, live: LiveRequest) -> None:
        """A request waits for those of its prompt no more."""
        for node in live.node.path():
            if node.scores is not None:
                node.scores.wanted.pop(live, None)
            self._queue.forget_logits(node)

    def drop(self, node: LiveNode) -> None:
        """Forget a node's, because weights have changed; those that are asked for are computed again."""
        if node.scores is not None:
            node.scores = NodeScores(node.scores.num_top, node.scores.wanted)
            if node.scores.wanted and node.segment is not None:
                self._queue.add_again(node, 0)


def note(logits: Tensor, rows: Items[tuple[LiveNode, range]]) -> None:
    """Store what rows of logits say, ``[R, vocab_size]``: those of each node after another."""
    first = 0
    for node, places in rows:
        if places:
            _note_node(logits[first : first + len(places)], node, places)
            first += len(places)


def _note_node(logits: Tensor, node: LiveNode, rows: range) -> None:
    scores = node.scores
    assert scores is not None
    inner = rows[: max(0, node.num_tokens - 1 - rows.start)]
    logprobs = log_softmax(logits)
    tops = _tops(logits, logprobs, scores.num_top)
    next_tokens = node.token_ids[inner.start + 1 : inner.stop + 1].astype(np.int64)
    if inner:
        assert inner.start == len(scores.chosen), "rows are computed in order"
        scores.chosen += _chosen(logits[: len(inner)], logprobs[: len(inner)], next_tokens)
        scores.top += tops[: len(inner)]
    if len(rows) > len(inner):
        tokens = np.array(sorted({t for t in scores.wanted.values() if t is not None}), np.int64)
        same = (len(tokens), -1)
        found = _chosen(logits[-1:].expand(same), logprobs[-1:].expand(same), tokens)
        scores.after |= dict(zip(tokens.tolist(), found, strict=True))
        scores.after_top = tops[-1]


def _chosen(logits: Tensor, logprobs: Tensor, tokens: NDArray[np.int64]) -> list[tuple[float, int]]:
    """The log-probability and rank of a token in each row."""
    places = upload(tokens, logits.device).unsqueeze(-1)
    ranks = (logits > logits.gather(1, places)).sum(-1) + 1
    values = logprobs.gather(1, places)[:, 0]
    return list(zip(values.tolist(), ranks.tolist(), strict=True))


def _tops(logits: Tensor, logprobs: Tensor, num_top: int) -> list[Top]:
    """The ``num_top`` most likely tokens of each row, ties by id; -1 for all."""
    count = logits.shape[1] if num_top < 0 else min(num_top, logits.shape[1])
    if not count:
        nothing = np.empty(0, np.int64), np.empty(0, np.float32)
        return [nothing] * len(logits)
    lowest = torch.topk(logits, count, sorted=True).values[:, -1:]
    row_of, ids = torch.nonzero(logits >= lowest, as_tuple=True)
    raw = logits[row_of, ids].float().cpu().numpy()
    values = logprobs[row_of, ids].cpu().numpy()
    rows, ids_of = row_of.cpu().numpy(), ids.cpu().numpy()
    order = np.lexsort((ids_of, -raw, rows))
    starts = np.searchsorted(rows, np.arange(len(logits)))  # ``nonzero`` goes by rows
    chosen = [order[start : start + count] for start in starts]
    return [(ids_of[places], values[places]) for places in chosen]


def _entries(token: int, chosen: tuple[float, int], top: Top, wanted: int) -> list[TokenLogprob]:
    """The prompt's token, then the most likely ones, as many as asked for."""
    count = len(top[0]) if wanted < 0 else wanted
    others = zip(top[0][:count].tolist(), top[1][:count].tolist(), strict=True)
    return [
        TokenLogprob(token, *chosen),
        *(TokenLogprob(i, value, rank) for rank, (i, value) in enumerate(others, start=1) if i != token),
    ]
