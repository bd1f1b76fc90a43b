"""The 15 tree shapes of FastTree's kernel benchmark (Pan et al., MLSys 2025; settings of its artifact)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TreeShape:
    """A balanced tree; every leaf is one decoding sequence.

    Attributes:
        widths: Nodes of each level, root first.
        lengths: Tokens of a node of each level.
    """

    widths: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def name(self) -> str:
        """In tables: ``1x64 4x128``."""
        return " ".join(f"{n}x{tokens}" for n, tokens in zip(self.widths, self.lengths, strict=True))

    @property
    def path_tokens(self) -> int:
        """Tokens that a leaf sees."""
        return sum(self.lengths)

    def shrunk(self, num_leaves: int) -> TreeShape:
        """The same levels with at most ``num_leaves`` leaves."""
        factor = min(num_leaves / self.widths[-1], 1)
        return TreeShape(tuple(max(round(n * factor), 1) for n in self.widths), self.lengths)

    def parent(self, level: int, place: int) -> int:
        """Which node of the level above holds node ``place`` of ``level``."""
        return place * self.widths[level - 1] // self.widths[level]


FAST_TREE = (
    TreeShape((1, 2, 64), (8, 256, 32)),
    TreeShape((1, 4, 256), (8, 256, 32)),
    TreeShape((1, 4, 8, 256), (8, 256, 256, 32)),
    TreeShape((1, 256), (256, 32)),
    TreeShape((1, 1024), (2048, 32)),
    TreeShape((1, 16, 64), (1024, 256, 32)),
    TreeShape((1, 4, 16, 512), (1024, 256, 128, 32)),
    TreeShape((1, 4, 16, 64, 256, 1024), (256, 8, 256, 64, 32, 256)),
    TreeShape((1, 10), (4000, 400)),
    TreeShape((1, 2, 4, 8, 16, 32, 64, 128, 1024), (16,) * 9),
    TreeShape((1, 2, 4, 8, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16, 16, 16, 16)),
    TreeShape((1, 8, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16, 16)),
    TreeShape((1, 8, 16, 32, 64, 256, 1024), (256, 128, 64, 16, 16, 16, 16)),
    TreeShape((1, 16, 32, 64, 128, 1024), (256, 128, 64, 16, 16, 16)),
    TreeShape((1, 16, 32, 64, 256, 1024), (256, 128, 64, 16, 16, 16)),
)
HEADS = ((16, 1), (32, 8), (32, 32))
"""Query and KV heads of its benchmark; head_dim 128, float16."""
