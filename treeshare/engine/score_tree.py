"""The tree that scoring computes: which tokens are one node, and which are copied from another.

A pair's bits must not depend on the other pairs, so its tokens are cut without regard to them: its context
and its continuation each into pieces of ``PIECE_TOKENS``. Equal pieces below equal paths are one node,
computed once. Pieces that differ but begin alike share their beginning too: it is computed once, as a node of
its own to which no other attends, and its KV is copied.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from treeshare.tree import PromptTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from treeshare.kv import KVStore, Segment
    from treeshare.tree.tokens import TokenArray

PIECE_TOKENS = 256
"""Maximum number of tokens of a node: if higher, more is copied; if lower, attention merges more parts."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens of a pair's continuation, from ``first`` on, that a node's rows from ``row`` on predict."""

    pair: int
    first: int
    row: int
    token_ids: TokenArray

    def part(self, start: int, end: int) -> Span | None:
        """The part that rows ``[start, end)`` predict; None if there is none."""
        low, high = max(start - self.row, 0), min(end - self.row, len(self.token_ids))
        if low >= high:
            return None
        return Span(self.pair, self.first + low, self.row + low, self.token_ids[low:high])


@dataclass(eq=False, slots=True)
class ScoreNode:
    """Tokens that are computed once.

    Attributes:
        token_ids: The tokens; not empty.
        start: Position of the first.
        parent: The node above.
        source: A sibling with whose first ``num_copied`` tokens this node begins; None if nothing is copied.
        num_copied: Tokens whose KV is copied from ``source``.
        order: Depth-first rank.
        spans: What its rows predict.
        children: Nodes below, by their tokens.
        num_waiting: Children, and nodes that copy from here, that have no KV yet.
        num_packed: Tokens computed, or about to be in this step.
        segment: Its KV.
    """

    token_ids: TokenArray
    start: int
    parent: ScoreNode | None
    source: ScoreNode | None = None
    num_copied: int = 0
    order: int = 0
    spans: list[Span] = field(default_factory=list)
    children: dict[bytes, ScoreNode] = field(default_factory=dict)
    num_waiting: int = 0
    num_packed: int = 0
    segment: Segment | None = None

    @property
    def num_tokens(self) -> int:
        """Length of the segment."""
        return len(self.token_ids)

    @property
    def is_packed(self) -> bool:
        """Whether all its tokens are computed, or are about to be in this step."""
        return self.num_packed == self.num_tokens

    @property
    def can_begin(self) -> bool:
        """Whether its parent is computed in this step or earlier, and its source earlier."""
        if self.parent is not None and not self.parent.is_packed:
            return False
        source = self.source
        return (
            source is None
            or self.segment is not None
            or (source.segment is not None and source.segment.num_written == source.num_tokens)
        )

    def wanted(self, start: int, end: int) -> list[int]:
        """The rows in ``[start, end)`` that predict a token of a span, ascending."""
        rows = {
            row
            for span in self.spans
            for row in range(max(span.row, start), min(span.row + len(span.token_ids), end))
        }
        return sorted(rows)


def make_paths(pairs: Sequence[tuple[TokenArray, TokenArray]]) -> dict[bytes, ScoreNode]:
    """The topmost nodes of a tree that holds each pair but its last token, cut as the module says."""
    roots: dict[bytes, ScoreNode] = {}
    for index, (context, continuation) in enumerate(pairs):
        if not len(continuation):
            continue
        tokens = np.concatenate([context, continuation])
        node, below = None, roots
        for start, end in _pieces(len(context), len(tokens) - 1):
            piece = tokens[start:end]
            node = below.setdefault(piece.tobytes(), ScoreNode(piece, start, node))
            below = node.children
            first = max(start, len(context) - 1)
            if first < end:
                place = first + 1 - len(context)
                node.spans.append(Span(index, place, first - start, tokens[first + 1 : end + 1]))
    return roots


def _pieces(num_context: int, num_tokens: int) -> Iterator[tuple[int, int]]:
    """The ``[start, end)`` of each piece of a pair."""
    for low, high in ((0, num_context), (num_context, num_tokens)):
        for start in range(low, high, PIECE_TOKENS):
            yield start, min(start + PIECE_TOKENS, high)


def depth_first(roots: dict[bytes, ScoreNode], chunk: int | None) -> Iterator[ScoreNode]:
    """All nodes, parents first, sources before the nodes that copy from them.

    Sets ``source`` and ``num_copied``, a multiple of ``chunk``; if that is None, nothing is copied. A node
    keeps the spans of all its rows; see ``move_spans``.
    """
    stack = _with_sources(roots, chunk)
    while stack:
        node = stack.pop()
        yield node
        stack += _with_sources(node.children, chunk)


def _with_sources(siblings: dict[bytes, ScoreNode], chunk: int | None) -> list[ScoreNode]:
    """Siblings and, before them, nodes that hold what several of them begin with; in reverse order.

    Only whole chunks are copied, so that the same rows are computed together as without copying, and
    never the whole of a node.
    """
    nodes = list(siblings.values())
    if chunk is None:
        for node in nodes:
            node.source, node.num_copied = None, 0
        return nodes[::-1]
    own = [(node.num_tokens - 1) // chunk * chunk for node in nodes]
    if sum(length > 0 for length in own) < 2:
        return nodes[::-1]
    tree = PromptTree.from_prompts([node.token_ids[:n] for node, n in zip(nodes, own, strict=True)])
    below = tree.completions_below()
    sources: list[ScoreNode | None] = []
    found: list[ScoreNode] = []
    for prefix in tree.nodes:
        source = sources[prefix.parent] if prefix.parent >= 0 else None
        num_tokens, num_copied = prefix.end // chunk * chunk, source.num_tokens if source else 0
        if below[prefix.node_id] > 1 and num_tokens > num_copied:
            example = nodes[_prompt_below(tree, prefix.node_id)]
            source = ScoreNode(
                example.token_ids[:num_tokens], example.start, example.parent, source, num_copied
            )
            found.append(source)
        sources.append(source)
        for index in prefix.prompts:
            node = nodes[index]
            node.source, node.num_copied = source, source.num_tokens if source else 0
            found.append(node)
    return found[::-1]


def move_spans(node: ScoreNode) -> None:
    """Move the parts of a node's spans that copied rows predict to the nodes that compute those rows."""
    spans, source = node.spans, node.source
    while source is not None:
        source.spans += _parts(spans, source.num_copied, source.num_tokens)
        source = source.source
    node.spans = _parts(spans, node.num_copied, node.num_tokens)


def _parts(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """The parts of spans that rows ``[start, end)`` predict."""
    parts = (span.part(start, end) for span in spans)
    return [part for part in parts if part is not None]


def _prompt_below(tree: PromptTree, node_id: int) -> int:
    """One of the prompts at or below a node."""
    return next(prompt for node in tree.nodes[node_id:] for prompt in node.prompts)


def path_bytes(roots: dict[bytes, ScoreNode], store: KVStore) -> tuple[int, int]:
    """The maximum KV bytes that a pair alone takes, and the index of that pair."""
    max_bytes, longest = 0, 0
    stack = [(node, 0) for node in roots.values()]
    while stack:
        node, above = stack.pop()
        total = above + store.segments.bytes_of(node.num_tokens)
        if total > max_bytes and node.spans:
            max_bytes, longest = total, node.spans[0].pair
        stack += [(child, total) for child in node.children.values()]
    return max_bytes, longest


def held_bytes(node: ScoreNode, store: KVStore) -> int:
    """KV bytes of a node, of those above it and of those that any of them copies from."""
    total = 0
    above: ScoreNode | None = node
    while above is not None:
        source: ScoreNode | None = above
        while source is not None:
            total += store.segments.bytes_of(source.num_tokens)
            source = source.source
        above = above.parent
    return total
