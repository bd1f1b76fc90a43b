"""What is decided before a run: its tree, how long completions may get, and what it will need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError
from treeshare.tree import PromptTree, fold_tree, truncate_sharing

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from treeshare.config import EngineConfig
    from treeshare.engine.sequence import Request
    from treeshare.kv import KVGeometry
    from treeshare.models import LoadedModel

NOMINAL_COMPLETIONS = 32
"""Completions per prompt that folding assumes; a run that is extended to more must keep its tree."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """A run as decided from its requests alone; what is left to do plays no part in the tree.

    Attributes:
        requests: What to run.
        tree: The tree to compute on; its prompts are the requests', in order.
        max_new_tokens: Per request, most tokens generated.
        num_completions: Completions to make.
        num_rows: Most rows that the whole run, finished or not, would decode at once.
        logical_tokens: Prompt tokens counted once per completion.
        unique_tokens: Prompt tokens counted once per shared segment.
        page_size: Tokens of a private page.
    """

    requests: Items[Request]
    tree: PromptTree
    max_new_tokens: Items[int]
    num_completions: int
    num_rows: int
    logical_tokens: int
    unique_tokens: int
    page_size: int

    @classmethod
    def make(cls, loaded: LoadedModel, config: EngineConfig, requests: Items[Request]) -> RunPlan:
        """Check the requests and plan their run.

        Raises:
            ConfigError: If a prompt is empty, too long, or has token ids the model does not know.
        """
        max_new_tokens = [_max_new_tokens(loaded, i, request) for i, request in enumerate(requests)]
        found = PromptTree.from_prompts([request.prompt_token_ids for request in requests])
        counts = [len(request.completion_indices) for request in requests]
        return cls(
            requests=requests,
            tree=computed_tree(found, config),
            max_new_tokens=max_new_tokens,
            num_completions=sum(counts),
            num_rows=min(sum(request.params.n for request in requests), config.max_num_seqs),
            logical_tokens=sum(
                count * len(request.prompt_token_ids) for count, request in zip(counts, requests, strict=True)
            ),
            unique_tokens=sum(node.num_tokens for node in found.nodes),
            page_size=config.page_size,
        )

    def pages(self, request_index: int) -> int:
        """Private pages of one completion; the last token generated needs no KV."""
        return -(-(self.max_new_tokens[request_index] - 1) // self.page_size)

    def max_pages(self, geometry: KVGeometry, budget_bytes: int) -> int:
        """Most private pages that can be live at once."""
        longest = max((self.pages(i) for i in range(len(self.requests))), default=0)
        page_bytes = self.page_size * geometry.bytes_per_token
        return min(min(self.num_rows, self.num_completions) * longest, budget_bytes // page_bytes)


def computed_tree(tree: PromptTree, config: EngineConfig) -> PromptTree:
    """The tree that the engine computes on: small nodes folded, or sharing given up for a measurement."""
    if config.sharing == "tree" and config.fold:
        return fold_tree(tree, NOMINAL_COMPLETIONS)
    return truncate_sharing(tree, config.sharing)


def _max_new_tokens(loaded: LoadedModel, index: int, request: Request) -> int:
    """Tokens that a request may generate within the model's length."""
    length, limit = len(request.prompt_token_ids), loaded.max_model_len
    if not length:
        raise ConfigError(f"prompts[{index}]: got an empty prompt, expected at least one token")
    if length >= limit:
        raise ConfigError.of(
            f"prompts[{index}]", got=f"{length} tokens", expected=f"fewer than the model's {limit}"
        )
    if request.params.stop_strings and loaded.tokenizer is None:
        raise ConfigError.of(
            "stop", got=request.params.stop_strings, expected="none: the model has no tokenizer"
        )
    low, high = min(request.prompt_token_ids), max(request.prompt_token_ids)
    if low < 0 or high >= loaded.vocab_size:
        bad = low if low < 0 else high
        raise ConfigError.of(f"prompts[{index}]", got=bad, expected=f"token ids in [0, {loaded.vocab_size})")
    return min(request.params.max_tokens, limit - length)
