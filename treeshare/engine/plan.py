"""What is decided about requests before they run: their tree, and the maximum length of completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from treeshare.config import require_int
from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams
from treeshare.tree import PromptTree, fold_tree, truncate_sharing

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from treeshare.config import EngineConfig
    from treeshare.engine.sequence import Request
    from treeshare.models import LoadedModel

NOMINAL_COMPLETIONS = 32
"""Completions per prompt that folding assumes; a run that is extended to more keeps its tree."""


def computed_tree(tree: PromptTree, config: EngineConfig) -> PromptTree:
    """The tree that the engine computes on: small nodes folded, or less sharing, for measurements.

    Args:
        tree: All that the prompts share; not changed.
        config: The engine's.
    """
    if config.sharing == "tree" and config.fold:
        return fold_tree(tree, NOMINAL_COMPLETIONS, config.fold_cost)
    return truncate_sharing(tree, config.sharing)


def max_new_tokens(loaded: LoadedModel, index: int, request: Request) -> int:
    """Maximum tokens that a request, the call's ``index``-th, may generate within the model's length.

    Raises:
        ConfigError: If its prompt is empty, too long, or has token ids the model does not know, or if it has
            stop strings and the model no tokenizer.
    """
    _check_request(request)
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
    _check_token_ids(f"prompts[{index}]", request.prompt_token_ids, loaded.vocab_size)
    require_text_tokens(f"prompts[{index}]", request.prompt_token_ids, loaded.other_tokens)
    ending = request.params.stop_ids
    _check_token_ids("stop_token_ids", ending, loaded.vocab_size)
    if request.params.min_tokens and len(loaded.eos_token_ids.union(ending)) >= loaded.vocab_size:
        raise ConfigError.of(
            "stop_token_ids",
            got="all tokens",
            expected="fewer, because min_tokens bans them",
        )
    return min(request.params.max_length, limit - length)


def require_text_tokens(name: str, ids: Sequence[int], other_tokens: Mapping[int, str]) -> None:
    """Refuse tokens in whose place a multimodal model would have an image, a video or sound.

    Raises:
        ConfigError: Naming the first.
    """
    found = next((token for token in ids if token in other_tokens), None) if other_tokens else None
    if found is not None:
        raise ConfigError.of(
            name,
            got=f"a token ({found}) that stands for {other_tokens[found]} input",
            expected="text: of a multimodal model the text model alone runs",
        )


def _check_request(request: Request) -> None:
    """Refuse what would fail in a step, behind the backs of the requests beside it."""
    if not isinstance(request.params, SamplingParams):
        raise ConfigError.of("params", got=type(request.params).__name__, expected="SamplingParams")
    for name in ("seed", "problem_key"):
        require_int(name, getattr(request, name), low=0, high=2**64 - 1)
    indices = request.completion_indices
    if not isinstance(indices, Sequence) or isinstance(indices, (str, bytes)):
        raise ConfigError.of("completion_indices", got=type(indices).__name__, expected="a list of integers")
    ends = (indices[0], indices[-1]) if isinstance(indices, range) and indices else indices
    for index in ends:
        require_int("completion_indices", index, low=0, high=2**32 - 1)
    if not isinstance(indices, range) and len(set(indices)) < len(indices):
        raise ConfigError.of("completion_indices", got="a repeated index", expected="each index once")


def _check_token_ids(name: str, ids: Collection[int], vocab_size: int) -> None:
    array = np.asarray(ids)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise ConfigError.of(name, got=str(array.dtype), expected="a flat list of token ids")
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high >= vocab_size:
        raise ConfigError.of(name, got=low if low < 0 else high, expected=f"token ids in [0, {vocab_size})")
