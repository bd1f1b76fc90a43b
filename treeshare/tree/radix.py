"""Finding shared prefixes: from token rows to the structure of their compressed radix tree.

In sorted order the prompts below any node are neighbours, so the sorted order and the common prefix lengths
of neighbours determine the whole tree. One pass over them with a stack of open nodes builds it, without
recursion.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.tree.tokens import TokenArray


@dataclass(slots=True)
class Skeleton:
    """A tree as parallel lists, nodes in any order; every ``PromptTree`` is made from one.

    Attributes:
        parents: The parent of each node, -1 for the root, of which there is exactly one.
        segments: The token ids of each node, int32.
        prompt_nodes: The node at which each prompt ends.
    """

    parents: list[int] = field(default_factory=list)
    segments: list[TokenArray] = field(default_factory=list)
    prompt_nodes: list[int] = field(default_factory=list)

    def add(self, parent: int, segment: TokenArray) -> int:
        """Append a node and return its index."""
        self.parents.append(parent)
        self.segments.append(segment)
        return len(self.parents) - 1


def discover(prompts: Sequence[TokenArray]) -> Skeleton:
    """Find every maximal shared prefix of ``prompts``.

    Sorts the prompts as byte strings and compares each with its neighbour, both in C:
    ``O(total tokens * log(num_prompts))`` in the worst case.

    Args:
        prompts: int32 rows of any lengths, which may be equal or empty.

    Returns:
        A skeleton in canonical radix form: the root (node 0) is the prefix common to all prompts, the
        children of a node begin with distinct tokens, and a node below the root at which no prompt ends has
        at least two children.
    """
    # Byte strings do not sort as numbers do, but any order in which equal prefixes are neighbours is enough.
    keys = [tokens.tobytes() for tokens in prompts]
    order = sorted(range(len(prompts)), key=keys.__getitem__)
    del keys
    # The common prefix of all prompts is that of the first and last in order.
    root_end = common_prefix(prompts[order[0]], prompts[order[-1]]) if order else 0
    ends, owners, parents = [root_end], [order[0] if order else -1], [-1]
    prompt_nodes = [0] * len(prompts)
    open_nodes = [0]  # the path of the previous prompt, root first

    def open_node(end: int, owner: int) -> None:
        ends.append(end)
        owners.append(owner)
        parents.append(-1)
        open_nodes.append(len(ends) - 1)

    previous = order[0] if order else -1
    for index in order:
        shared = common_prefix(prompts[previous], prompts[index])
        while ends[open_nodes[-1]] > shared:
            closed = open_nodes.pop()
            if ends[open_nodes[-1]] < shared:
                open_node(shared, previous)  # the two prompts diverge inside a segment: split it
            parents[closed] = open_nodes[-1]
        if len(prompts[index]) > ends[open_nodes[-1]]:
            open_node(len(prompts[index]), index)
        prompt_nodes[index] = open_nodes[-1]
        previous = index
    while len(open_nodes) > 1:
        closed = open_nodes.pop()
        parents[closed] = open_nodes[-1]

    segments = []
    for end, owner, parent in zip(ends, owners, parents, strict=True):
        start = ends[parent] if parent >= 0 else 0
        segments.append(_slice(prompts[owner], start, end) if owner >= 0 else np.empty(0, np.int32))
    return Skeleton(parents, segments, prompt_nodes)


def _slice(tokens: TokenArray, start: int, end: int) -> TokenArray:
    """A copy, so that a node does not keep its whole prompt in memory."""
    return tokens[start:end].copy()


def common_prefix(a: TokenArray, b: TokenArray) -> int:
    """Number of leading tokens that ``a`` and ``b`` have in common."""
    length = min(len(a), len(b))
    if not length or a[0] != b[0]:
        return 0
    differ = a[:length] != b[:length]
    first = int(differ.argmax())
    return first if differ[first] else length
