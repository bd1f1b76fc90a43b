"""Requests as ``LLM`` makes them: each prompt with its parameters and the key of its random numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from treeshare.config import require_int
from treeshare.engine.prompts import items_of, token_ids_of
from treeshare.engine.sequence import Request
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams, problem_key

Params = SamplingParams | Sequence[SamplingParams] | None
"""For all prompts, or for each; None for the defaults."""


def make_requests(prompts: Sequence[Sequence[int]], params: Params, seed: int) -> list[Request]:
    """Requests for prompts given as token ids; their random numbers depend on the prompt, not on the order.

    Args:
        prompts: Token ids of each, lists of integers. A prompt that comes again counts as another problem.
        params: How to sample.
        seed: For parameters that have none.

    Raises:
        ConfigError: If there are not as many parameters as prompts.
    """
    num_seen = Counter[bytes]()
    requests = []
    for token_ids, own in zip(prompts, params_per_prompt(params, len(prompts)), strict=True):
        content = np.array(token_ids, dtype="<i8").tobytes()
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


def checked_requests(prompts: Sequence[Sequence[int]], params: Params, seed: int) -> list[Request]:
    """As ``make_requests``, for prompts that nobody has looked at.

    Raises:
        ConfigError: If prompts are no token ids, or as ``make_requests``.
    """
    given = items_of("prompts", prompts, "a list of token ids")
    return make_requests([token_ids_of(i, ids) for i, ids in enumerate(given)], params, seed)


def one_request(token_ids: Sequence[int], params: SamplingParams, seed: int, first_index: int) -> Request:
    """A single prompt's request, for completions from ``first_index`` on; otherwise as ``make_requests``."""
    require_int("first_index", first_index, low=0, high=2**31 - 1)
    (request,) = make_requests([token_ids], params, seed)
    num_completions = len(request.completion_indices)
    return replace(request, completion_indices=range(first_index, first_index + num_completions))


def params_per_prompt(params: Params, num_prompts: int) -> list[SamplingParams]:
    """Parameters of each prompt, also where the same were given for all.

    Raises:
        ConfigError: If they are something else, or not as many as prompts.
    """
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * num_prompts
    expected = "SamplingParams, or a list of them, one for each prompt"
    remedy = "SamplingParams.from_dict takes a mapping"
    if isinstance(params, Mapping):
        raise ConfigError.of("sampling_params", got=type(params).__name__, expected=expected, remedy=remedy)
    given = items_of("sampling_params", params, expected)
    wrong = next((own for own in given if not isinstance(own, SamplingParams)), given)
    if wrong is not given:
        raise ConfigError.of("sampling_params", got=f"a list with {wrong!r:.40}", expected=expected)
    if len(given) != num_prompts:
        raise ConfigError.of(
            "sampling_params",
            got=f"{len(given)} for {num_prompts} prompts",
            expected="one for all prompts, or one for each",
        )
    return given
