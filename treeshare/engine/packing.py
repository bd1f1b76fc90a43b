"""A step's plan as packed rows, and which logits its tokens are drawn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from treeshare.attention import DecodeRow, build_layout

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from numpy.typing import NDArray
    from torch import Tensor

    from treeshare.attention import BatchLayout
    from treeshare.config import Sharing
    from treeshare.engine.forest import LiveNode
    from treeshare.engine.scheduler import StepPlan
    from treeshare.engine.sequence import Sequence
    from treeshare.kv import KVStore


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Logits ``[R, vocab_size]`` and, for each row, the sequences that draw their next token from it."""

    logits: Tensor
    sequences: list[list[Sequence]]


@dataclass(frozen=True, slots=True)
class PackedStep:
    """What the model is run on.

    Attributes:
        layout: The place of each packed row, and what it attends to.
        tokens: ``[num_rows]`` int64: the token of each row.
        drawing: Sequences whose row draws their next token; the others compute again what they had drawn.
        ending: Nodes whose last token is computed, and from which completions will start.
        scored: Nodes, each with those of its rows that its scores lack.
        logits_rows: The rows of ``drawing``, then those of ``ending``, then those of ``scored``.
    """

    layout: BatchLayout
    tokens: NDArray[np.int64]
    drawing: list[Sequence]
    ending: list[LiveNode]
    scored: list[tuple[LiveNode, range]]
    logits_rows: list[int]

    @classmethod
    def of(cls, plan: StepPlan, store: KVStore, sharing: Sharing) -> PackedStep:
        """Pack a plan that computes something.

        Args:
            plan: What to compute; its pages and segments are allocated.
            store: The KV.
            sharing: Which segments rows attend to together.
        """
        rows = [DecodeRow(s.segment, s.pages, s.num_computed) for s in plan.rows if s.pages is not None]
        layout = build_layout(store, [chunk for _, chunk in plan.chunks], rows, sharing=sharing)
        tokens = np.empty(layout.num_rows, np.int64)
        places = layout.decode_rows.tolist()
        tokens[places] = [s.token_ids[s.num_computed] for s in plan.rows]
        ends: dict[LiveNode, int] = {}
        scored: list[tuple[LiveNode, range]] = []
        scored_places: list[int] = []
        for (node, chunk), place in zip(plan.chunks, layout.causal, strict=True):
            tokens[place.first_row : place.last_row] = node.token_ids[chunk.start : chunk.end]
            if chunk.end == node.num_tokens and node.num_unstarted:
                ends[node] = place.last_row - 1
            if found := node.scored_rows(chunk.start, chunk.end):
                scored.append((node, found))
                scored_places += [place.first_row + row - chunk.start for row in found]
        drawing = {s: place for s, place in zip(plan.rows, places, strict=True) if s.draws_next}
        logits_rows = [*drawing.values(), *ends.values(), *scored_places]
        return cls(layout, tokens, list(drawing), list(ends), scored, logits_rows)


def starting_batch(starting: Items[Sequence], *, is_lazy: bool) -> RowBatch:
    """Sequences that draw their first token, with the logits of their prompt's last one.

    Args:
        starting: Not empty; the logits of their nodes are known.
        is_lazy: Completions of a sequence share a row until they draw different tokens.
    """
    logits = [sequence.live.node.logits for sequence in starting]
    groups = [[sequence] if is_lazy else sequence.singles() for sequence in starting]
    return RowBatch(torch.stack([row for row in logits if row is not None]), groups)
