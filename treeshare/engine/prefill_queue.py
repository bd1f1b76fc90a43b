"""The nodes whose KV is being computed, in order."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from treeshare.attention import PrefillChunk

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from treeshare.engine.forest import LiveNode
    from treeshare.kv import Segment


class PrefillQueue:
    """Nodes with a place for their KV that lack some of it, or only their logits.

    Args:
        chunk: Tokens of a node that are computed together.
    """

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        # The next one first (``OrderedDict``: the first goes at once); how much of its KV is stored, whatever
        # is computed again for the logits.
        self._nodes: OrderedDict[LiveNode, int] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._nodes)

    def __contains__(self, node: LiveNode) -> bool:
        return node in self._nodes

    def add(self, node: LiveNode) -> None:
        """Queue a node, unless it is queued, or lacks nothing of its KV."""
        if not is_whole(node):
            self._nodes.setdefault(node, 0)

    def add_for_logits(self, node: LiveNode) -> None:
        """Have the last chunk of a node that lacks nothing computed again, to the same bits."""
        assert node not in self._nodes
        assert is_whole(node), "what lacks KV is queued for it"
        self.add_again(node, node.num_tokens - 1)

    def add_again(self, node: LiveNode, row: int) -> None:
        """Have a node computed from the chunk that holds ``row`` on, for the logits, to the same bits."""
        segment = node.segment
        assert segment is not None
        self._nodes[node] = max(self._nodes.get(node, 0), segment.num_written)
        segment.num_written = min(segment.num_written, row // self._chunk * self._chunk)

    def give_up(self, node: LiveNode) -> bool:
        """Nobody waits for a node: compute no more of it.

        What it has of its KV stays valid; the rest comes when it is needed, and added, again.

        Returns:
            Whether it was queued and has none.
        """
        was_queued = node in self._nodes
        self.remove(node)
        return was_queued and node.segment is not None and not node.segment.num_written

    def forget_logits(self, node: LiveNode) -> None:
        """Somebody waits for a node's logits no more; if nobody does, only what lacks KV is computed."""
        is_stored = self._nodes.get(node) == node.num_tokens
        if is_stored and not (node.num_unstarted and node.logits is None) and not _lacks_scores(node):
            self.remove(node)

    def remove(self, node: LiveNode) -> None:
        """Take a node out, if it is queued."""
        stored = self._nodes.pop(node, 0)
        if node.segment is not None:  # the same bits would have been written once more
            node.segment.num_written = max(node.segment.num_written, stored)

    def take(
        self, max_rows: int, copy_known: Callable[[LiveNode, Segment], None], max_scored: int
    ) -> list[tuple[LiveNode, PrefillChunk]]:
        """Take the next chunks that fit into ``max_rows``, depth-first; from now on they count as written.

        A segment is cut at multiples of one length, so its KV does not depend on what else runs.

        Args:
            max_rows: Maximum number of tokens.
            copy_known: Copies what others have by now; called for a node before its chunk is chosen.
            max_scored: Maximum number of rows whose logits are wanted for prompts' log-probabilities.
        """
        chunks: list[tuple[LiveNode, PrefillChunk]] = []
        while self._nodes:
            node = next(iter(self._nodes))
            segment = node.segment
            assert segment is not None, "only a node with a place for its KV is queued"
            if not chunks:  # what this step computes cannot be copied yet
                copy_known(node, segment)
            start = segment.num_written
            end = min(start + self._chunk, segment.num_tokens)
            num_scored = len(node.scored_rows(start, end))
            if end - start > max_rows or num_scored > max_scored:
                break
            max_rows, max_scored = max_rows - (end - start), max_scored - num_scored
            chunks.append((node, PrefillChunk(segment, start, end)))
            segment.num_written = end
            node.note_computed()
            if end == segment.num_tokens:
                del self._nodes[node]
        return sorted(chunks, key=lambda item: (item[0].order, item[1].start))

    def check_invariants(self, live: Collection[LiveNode]) -> None:
        """Assert that what is queued is live, and that somebody waits for it.

        Args:
            live: All nodes.
        """
        assert self._nodes.keys() <= set(live)
        for node, num_stored in self._nodes.items():
            assert node.num_unfinished, "a prompt is computed that nobody waits for"
            is_wanted = node.num_unstarted or (node.scores is not None and node.scores.wanted)
            assert is_wanted or num_stored < node.num_tokens, "logits nobody waits for"
        for node in live:
            is_coming = is_whole(node) or node in self._nodes
            assert is_coming or not node.num_admitted, "a row's prompt is not computed"


def _lacks_scores(node: LiveNode) -> bool:
    """Whether log-probabilities of a node's tokens are asked for and not known."""
    return node.scores is not None and node.scores.lacks_from(node.num_tokens) is not None


def is_whole(node: LiveNode) -> bool:
    """Whether a node lacks nothing of its KV, or has no place for it yet."""
    return node.segment is None or node.segment.num_written == node.num_tokens
