"""The forms in which prompts and their parameters may be given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams
from treeshare.tree import PromptTree

Prompt = str | Mapping[str, Any] | Sequence[int]
Message = Mapping[str, Any]


def as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Several prompts, also where one was given."""
    if isinstance(prompts, (str, Mapping)):
        return [prompts]
    items: list[Any] = list(prompts)
    return [items] if items and isinstance(items[0], (int, np.integer)) else items


def per_prompt(
    params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    """Parameters of each prompt, also where they were given for all.

    Raises:
        ConfigError: If there are not as many as prompts.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    if len(params) != num_prompts:
        raise ConfigError.of(
            "sampling_params",
            got=f"{len(params)} for {num_prompts} prompts",
            expected="one, or one for each prompt",
        )
    return list(params)


def token_ids_of(index: int, ids: Any) -> list[int]:  # noqa: ANN401
    """The ``index``-th prompt's tokens as a list.

    Raises:
        ConfigError: If they are not a flat row of integers.
    """
    if not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in ids):
        raise ConfigError.of(
            f"prompts[{index}]", got=type(ids).__name__, expected="a flat list of integer token ids"
        )
    if any(abs(int(i)) >= 1 << 31 for i in ids):
        raise ConfigError.of(f"prompts[{index}]", got=max(map(int, ids), key=abs), expected="token ids")
    return [int(i) for i in ids]


def shared_tokens(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Per prompt, the leading tokens that an earlier prompt has too."""
    tree = PromptTree.from_prompts(prompts)
    seen: set[int] = set()
    shared = []
    for node_id in tree.prompt_nodes:
        path = tree.path(node_id)
        shared.append(sum(tree.nodes[node].num_tokens for node in path if node in seen))
        seen.update(path)
    return shared
