"""What a prompt tree saves, in tokens and in KV bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, head_dim: int, dtype_bytes: int) -> int:
    """Bytes of a token's keys and values, all layers together.

    Args:
        num_layers: Attention layers of the model.
        num_kv_heads: KV heads of a layer (not query heads).
        head_dim: Width of a head, the same for keys and values.
        dtype_bytes: Bytes of an element: 2 for bfloat16, 4 for float32.
    """
    return 2 * num_layers * num_kv_heads * head_dim * dtype_bytes


class KvBytes(NamedTuple):
    """Bytes of prompt KV: ``unique`` if stored once per node, ``logical`` if stored once per completion."""

    unique: int
    logical: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeStats:
    """Counts of a prompt tree. Generated tokens are not counted.

    Attributes:
        num_prompts: Prompts in the tree.
        num_completions: Completions of all prompts together.
        num_nodes: Nodes, an empty root included.
        depth: Maximum number of non-empty segments on a path.
        logical_tokens: Prompt tokens counted once per completion.
        unique_tokens: Prompt tokens counted once per node.
    """

    num_prompts: int
    num_completions: int
    num_nodes: int
    depth: int
    logical_tokens: int
    unique_tokens: int

    @property
    def sharing_ratio(self) -> float:
        """``logical_tokens / unique_tokens``; 1.0 for a tree without tokens."""
        return self.logical_tokens / self.unique_tokens if self.unique_tokens else 1.0

    def kv_bytes(self, bytes_per_token: int) -> KvBytes:
        """Bytes of prompt KV, given a model's bytes per token (see ``kv_bytes_per_token``)."""
        return KvBytes(self.unique_tokens * bytes_per_token, self.logical_tokens * bytes_per_token)
