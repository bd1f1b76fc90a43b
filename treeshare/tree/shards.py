"""Divides a forest into shards for several workers, by the predicted time of each shard.

A shard is a range of problems in depth-first order. So two shards have nodes in common only along the paths
where they meet, and each of those nodes is computed once more. The completions of a problem stay together,
unless decoding them takes longer than a worker's share of the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.tree.forecast import StepCost
    from treeshare.tree.prompt_tree import PromptTree

MAX_SHARDS_PER_WORKER = 4
"""More shards balance completions that end early, but each shard computes the nodes above it again."""

_PIECES_PER_SHARE = 16
"""Into how many pieces a worker's share is cut, where a problem takes longer than that share."""

_NODE_COPIES = 512
"""A node's prefill time is that of this many copies, divided by their number: prompts share full steps."""

_BISECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A part of a run.

    Attributes:
        wanted: Completion indices by prompt, each list ascending.
        predicted_s: Seconds that a worker is predicted to take.
    """

    wanted: dict[int, list[int]]
    predicted_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class _Piece:
    """Completions of a prompt that stay together.

    Attributes:
        prompt: Prompt index.
        indices: Completion indices.
        decode_s: Seconds to decode them.
        path_s: Seconds to compute the whole prompt.
        own_path_s: Seconds to compute the part of the prompt that the previous piece does not share.
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
    """Divide the wanted completions into shards so that the longest shard is as short as possible.

    There are at most as many shards as workers, or a few times as many where each shard still fills a
    worker's rows: then a worker that finishes early takes another shard.

    Args:
        tree: The prompt tree, folded as the engine folds it.
        wanted: Completion indices of each prompt, ascending; may be empty.
        new_tokens: Tokens of each of a prompt's completions, by prompt; at least 1.
        cost: What the parts of a run cost a worker.
        num_workers: At least 1.
        max_num_seqs: Maximum number of completions that a worker decodes at once.

    Returns:
        Non-empty shards, the longest first.
    """
    num_rows = sum(map(len, wanted))
    if not num_rows:
        return []
    rows_each = max(1, min(max_num_seqs, num_rows // num_workers))
    pieces = _pieces(
        tree, wanted, _decode_seconds(tree, wanted, new_tokens, cost, rows_each), cost, num_workers
    )
    shards_per_worker = min(max(num_rows // (num_workers * max_num_seqs), 1), MAX_SHARDS_PER_WORKER)
    low, high = 0.0, sum(piece.decode_s + piece.path_s for piece in pieces)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if len(_group(pieces, middle)) <= num_workers * shards_per_worker:
            high = middle
        else:
            low = middle
    return sorted(map(_shard, _group(pieces, high)), key=lambda shard: -shard.predicted_s)


def _decode_seconds(
    tree: PromptTree,
    wanted: Sequence[Sequence[int]],
    new_tokens: Sequence[int],
    cost: StepCost,
    num_rows: int,
) -> list[float]:
    """Seconds to decode each prompt's completions in steps of ``num_rows`` rows of that prompt; by prompt."""
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
    """The wanted completions depth-first: one piece per prompt, several if it exceeds a worker's share."""
    below = tree.sums_below([len(indices) for indices in wanted])
    path_s: list[float] = []  # from the root to the end of each node
    total_s = sum(decode_s)
    for node in tree.nodes:
        pairs = node.num_tokens * (node.start + node.num_tokens // 2)
        node_s = cost.prefill_s(_NODE_COPIES * node.num_tokens, _NODE_COPIES * pairs) / _NODE_COPIES
        path_s.append(node_s + (path_s[node.parent] if node.parent >= 0 else 0.0))
        total_s += node_s * (below[node.node_id] > 0)
    share_s = total_s / num_workers
    pieces: list[_Piece] = []
    previous_path: tuple[int, ...] = ()
    for prompt in (prompt for node in tree.nodes for prompt in node.prompts if wanted[prompt]):
        path = tree.path(tree.prompt_nodes[prompt])
        shared_s = [path_s[i] for i, j in zip(path, previous_path, strict=False) if i == j]
        whole_s = path_s[path[-1]]
        own_s = whole_s - (shared_s[-1] if shared_s else 0.0)
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
        previous_path = path
    return pieces


def _group(pieces: Sequence[_Piece], limit_s: float) -> list[list[_Piece]]:
    """Consecutive pieces in groups of at most ``limit_s``; a longer piece is a group of its own."""
    groups: list[list[_Piece]] = []
    group_s = 0.0
    for piece in pieces:
        if groups and group_s + piece.decode_s + piece.own_path_s <= limit_s:
            groups[-1].append(piece)
            group_s += piece.decode_s + piece.own_path_s
        else:
            groups.append([piece])
            group_s = piece.decode_s + piece.path_s
    return groups


def _shard(group: Sequence[_Piece]) -> Shard:
    wanted: dict[int, list[int]] = {}
    for piece in group:
        wanted.setdefault(piece.prompt, []).extend(piece.indices)
    seconds = (
        group[0].path_s - group[0].own_path_s + sum(piece.decode_s + piece.own_path_s for piece in group)
    )
    return Shard(wanted=wanted, predicted_s=seconds)
