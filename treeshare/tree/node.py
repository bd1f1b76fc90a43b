"""A vertex of a prompt tree."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from treeshare.tree.tokens import TokenArray


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A vertex of a ``PromptTree`` and its segment of token ids.

    Attributes:
        node_id: Index in ``PromptTree.nodes``.
        parent: Node id of the parent, -1 for the root.
        start: Position in the prompt of the segment's first token.
        token_ids: The segment, int32 ``[num_tokens]``, read-only; only the root's may be empty.
        children: Node ids, ordered by the first prompt below each child.
        prompts: Indices of the prompts that end exactly here, ascending.
        depth: Edges from the root.
    """

    node_id: int
    parent: int
    start: int
    token_ids: TokenArray = field(repr=False)
    children: tuple[int, ...]
    prompts: tuple[int, ...]
    depth: int

    @property
    def num_tokens(self) -> int:
        """Length of the segment."""
        return len(self.token_ids)

    @property
    def end(self) -> int:
        """Position in the prompt after the segment's last token."""
        return self.start + len(self.token_ids)

    def _key(self) -> tuple[object, ...]:
        return (self.node_id, self.parent, self.start, self.token_ids.tobytes(), self.children, self.prompts)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Node) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())
