"""Requests as ``LLM`` makes them: each prompt with its parameters and the key of its random numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from treeshare.engine.sequence import Request
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams, problem_key

Params = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or for each; None for the defaults."""


def make_requests(prompts: Sequence[Sequence[int]], params: Params, seed: int) -> list[Request]:
    """Requests for prompts given as token ids; their random numbers depend on the prompt, not on the order.

    Args:
        prompts: Token ids of each. A prompt that comes again counts as another problem.
        params: How to sample.
        seed: For parameters that have none.

    Raises:
        ConfigError: If there are not as many parameters as prompts.
    """
    num_seen = Counter[bytes]()
    requests = []
    for token_ids, own in zip(prompts, params_per_prompt(params, len(prompts)), strict=True):
        content = np.asarray(token_ids, dtype="<i8").tobytes()
        key = problem_key(content + num_seen[content].to_bytes(8, "little"))
        num_seen[content] += 1
        requests.append(
            Request(
                prompt_token_ids=token_ids,
                params=own,
                problem_key=key,
                seed=seed if own.seed is None else own.seed,
                completion_indices=range(own.n),
            )
        )
    return requests


def params_per_prompt(params: Params, num_prompts: int) -> list[SamplingParams]:
    """Parameters of each prompt, also where the same were given for all.

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
