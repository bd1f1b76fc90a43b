"""The attention problems that ``kernel_bench.py`` measures."""

from __future__ import annotations

from dataclasses import dataclass

HEADS, GROUP, DIM = 3, 3, 64
"""KV heads, query heads of each, and head_dim of SmolLM2-135M."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """An attention problem: rows below a root, perhaps below leaves, perhaps with private tokens.

    Attributes:
        name: In the table.
        rows: Decoding rows, spread over the leaves; for ``causal`` the last tokens of the root.
        root: Tokens that all rows see; for ``causal``, each row up to itself.
        leaves: Nodes below the root; 0 for none.
        leaf: Tokens of each.
        private: Tokens of a row's own before this step.
        causal: The rows are prompt tokens.
    """

    name: str
    rows: int
    root: int
    leaves: int = 0
    leaf: int = 0
    private: int = 0
    causal: bool = False

    @property
    def parts(self) -> list[tuple[int, int, int, bool]]:
        """Its dense parts: how many, query rows of each, keys of each, whether causal."""
        if self.causal:
            return [(1, self.rows, self.root - self.rows, False), (1, self.rows, self.rows, True)]
        parts = [(1, self.rows, self.root, False), (self.rows, 1, self.private + 1, False)]
        if self.leaves:
            parts.insert(1, (self.leaves, self.rows // self.leaves, self.leaf, False))
        return [part for part in parts if part[2]]

    @property
    def flops(self) -> float:
        """Of the two matmuls, counting only keys that a row sees."""
        pairs = sum(
            n * rows * (keys + 1) / 2 if own else n * rows * keys for n, rows, keys, own in self.parts
        )
        return 4.0 * pairs * HEADS * GROUP * DIM

    @property
    def num_bytes(self) -> float:
        """Keys and values once, queries in, results out."""
        keys = sum(n * keys for n, _, keys, _ in self.parts)
        return 2.0 * (2 * keys * HEADS * DIM + 2 * self.rows * HEADS * GROUP * DIM)


CASES = (
    Case(name="shared 256 x 2048", rows=256, root=2048),
    Case(name="shared 64 x 6144", rows=64, root=6144),
    Case(name="W1: 2048 + 8 x 256 + 32", rows=256, root=2048, leaves=8, leaf=256, private=32),
    Case(name="W3: 16 + 16 x 240 + 32", rows=256, root=16, leaves=16, leaf=240, private=32),
    Case(name="private 256 x 64", rows=256, root=0, private=63),
    Case(name="causal 512 of 2048", rows=512, root=2048, causal=True),
    Case(name="causal 512 of 6144", rows=512, root=6144, causal=True),
)
TINY_CASES = (
    Case(name="tiny", rows=16, root=32, leaves=2, leaf=16, private=3),
    Case(name="tiny causal", rows=16, root=32, causal=True),
)
