"""A forest cut into parts for several workers, by what each part is predicted to take.

A part is a run of problems in depth-first order, so it shares all but the nodes at its two ends with nobody,
and each of those costs one more prefill. A problem's completions stay together: only a problem that alone
decodes longer than a worker's share of everything may be cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.tree.forecast import StepCost
    from treeshare.tree.prompt_tree import PromptTree

MAX_SHARDS_PER_WORKER = 4
"""More even out completions that end early; each computes again the nodes above it."""

_PIECES_PER_SHARE = 16
"""How finely a problem may be cut that is more than a worker's share."""

_MANY = 512
_BISECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a run.

    Attributes:
        wanted: Completion indices by prompt, each ascending.
        predicted_s: Seconds that it is predicted to take a worker.
    """

    wanted: dict[int, list[int]]
    predicted_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Completions of one prompt that are not cut any further.

    Attributes:
        prompt: The prompt.
        indices: Its completions.
        decode_s: Seconds of their decoding.
        path_s: Seconds to compute the whole prompt.
        own_path_s: Seconds to compute what the piece before does not share.
    """

    prompt: int
    indices: Sequence[int]
    decode_s: float
    path_s: float
    own_path_s: float


def cut_forest(
    tree: PromptTree,
    wanted: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    cost: StepCost,
    *,
    num_workers: int,
    max_num_seqs: int,
) -> list[Shard]:
    """Cut what is wanted of a forest so that the longest part is as short as can be.

    There are as many parts as workers, or a few times as many where each still fills a worker's rows: then
    whoever is done early takes another.

    Args:
        tree: The tree that is computed on, folded as the engine folds it.
        wanted: Completion indices of each prompt, ascending; may be empty.
        new_tokens: Tokens of a completion of each prompt, at least 1.
        cost: What steps cost a worker.
        num_workers: At least 1.
        max_num_seqs: Most completions that a worker decodes at once.

    Returns:
        The parts, longest first; none is empty.
    """
    num_rows = sum(map(len, wanted))
    if not num_rows:
        return []
    rows_each = max(1, min(max_num_seqs, num_rows // num_workers))
    pieces = _pieces(
        tree, wanted, _decode_seconds(tree, wanted, new_tokens, cost, rows_each), cost, num_workers
    )
    times = min(max(num_rows // (num_workers * max_num_seqs), 1), MAX_SHARDS_PER_WORKER)
    low, high = 0.0, sum(piece.decode_s + piece.path_s for piece in pieces)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if len(_runs(pieces, middle)) <= num_workers * times:
            high = middle
        else:
            low = middle
    return sorted(map(_shard, _runs(pieces, high)), key=lambda shard: -shard.predicted_s)


def _decode_seconds(
    tree: PromptTree,
    wanted: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    cost: StepCost,
    num_rows: int,
) -> list[float]:
    """Of each prompt's completions: their part of steps with ``num_rows`` rows like them."""
    seconds = []
    for indices, tokens, node_id in zip(wanted, new_tokens, tree.prompt_nodes, strict=True):
        shared, private = num_rows * tree.nodes[node_id].end, num_rows * tokens / 2
        seconds.append(len(indices) * (tokens - 1) * cost.decode_s(num_rows, shared, private) / num_rows)
    return seconds


def _pieces(
    tree: PromptTree,
    wanted: Sequence[Sequence[int]],
    decode_s: Sequence[float],
    cost: StepCost,
    num_workers: int,
) -> list[_Piece]:
    """What is wanted, depth-first: whole problems, but for those above a worker's share."""
    below = tree.sums_below([len(indices) for indices in wanted])
    path_s: list[float] = []  # from the root to the end of each node
    total_s = sum(decode_s)
    for node in tree.nodes:
        # Prompts are packed into steps: many times as much has no step that is not full.
        pairs = node.num_tokens * (node.start + node.num_tokens // 2)
        node_s = cost.prefill_s(_MANY * node.num_tokens, _MANY * pairs) / _MANY
        path_s.append(node_s + (path_s[node.parent] if node.parent >= 0 else 0.0))
        total_s += node_s * (below[node.node_id] > 0)
    share_s = total_s / num_workers
    pieces: list[_Piece] = []
    before: tuple[int, ...] = ()
    for prompt in (prompt for node in tree.nodes for prompt in node.prompts if wanted[prompt]):
        path = tree.path(tree.prompt_nodes[prompt])
        common = [path_s[one] for one, other in zip(path, before, strict=False) if one == other]
        whole_s, own_s = path_s[path[-1]], path_s[path[-1]] - (common[-1] if common else 0.0)
        indices, size = wanted[prompt], len(wanted[prompt])
        if decode_s[prompt] > share_s:
            size = max(1, int(size * share_s / decode_s[prompt] / _PIECES_PER_SHARE))
        for first in range(0, len(indices), size):
            part = indices[first : first + size]
            part_s = decode_s[prompt] * len(part) / len(indices)
            pieces.append(
                _Piece(prompt=prompt, indices=part, decode_s=part_s, path_s=whole_s, own_path_s=own_s)
            )
            own_s = 0.0
        before = path
    return pieces


def _runs(pieces: Sequence[_Piece], limit_s: float) -> list[list[_Piece]]:
    """Pieces in order, in runs of at most ``limit_s``, or of a single piece where that is longer."""
    runs: list[list[_Piece]] = []
    run_s = 0.0
    for piece in pieces:
        if runs and run_s + piece.decode_s + piece.own_path_s <= limit_s:
            runs[-1].append(piece)
            run_s += piece.decode_s + piece.own_path_s
        else:
            runs.append([piece])
            run_s = piece.decode_s + piece.path_s
    return runs


def _shard(run: Sequence[_Piece]) -> Shard:
    wanted: dict[int, list[int]] = {}
    for piece in run:
        wanted.setdefault(piece.prompt, []).extend(piece.indices)
    seconds = run[0].path_s - run[0].own_path_s + sum(piece.decode_s + piece.own_path_s for piece in run)
    return Shard(wanted=wanted, predicted_s=seconds)
