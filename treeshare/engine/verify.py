"""Whether completions depend on sharing or on what else runs: measured on the user's own requests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from treeshare.engine.engine import Engine

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from torch import Tensor

    from treeshare.config import EngineConfig
    from treeshare.engine.sequence import Request, Sequence
    from treeshare.models import LoadedModel

Place = tuple[int, int, int]
"""Request, completion, position."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two ways of generating the same completions.

    Attributes:
        num_completions: Completions compared.
        num_same: Those whose tokens are all the same.
        num_positions: Positions compared: those whose preceding tokens are the same.
        num_identical: Those whose logits are the same, bit for bit.
        max_difference: Largest difference of a logit.
        max_logit: Largest absolute logit, for scale.
    """

    num_completions: int
    num_same: int
    num_positions: int
    num_identical: int
    max_difference: float
    max_logit: float


class _Trace:
    """The logits and tokens of one run."""

    def __init__(self) -> None:
        self.logits: dict[Place, Tensor] = {}
        self.tokens: dict[tuple[int, int], list[int]] = {}

    def observe(self, sequence: Sequence, logits: Tensor) -> None:
        kept = logits.clone()
        for index in sequence.completions:
            self.logits[sequence.request_index, index, len(sequence.token_ids)] = kept


def _trace(loaded: LoadedModel, config: EngineConfig, requests: Items[Request]) -> _Trace:
    trace = _Trace()
    for completion in Engine(loaded, config).run(requests, observe=trace.observe):
        trace.tokens[completion.request_index, completion.completion_index] = completion.token_ids
    return trace


def compare_sharing(loaded: LoadedModel, config: EngineConfig, requests: Items[Request]) -> Comparison:
    """Compare ``config.sharing`` with every sequence attending to its whole path alone."""
    return _compare(
        _trace(loaded, config, requests), _trace(loaded, replace(config, sharing="none"), requests)
    )


def compare_company(loaded: LoadedModel, config: EngineConfig, requests: Items[Request]) -> Comparison:
    """Compare all completions with every second of them, run without the others and on rows of their own."""
    some = [
        replace(request, completion_indices=list(request.completion_indices)[1::2]) for request in requests
    ]
    alone = replace(config, lazy_divergence=False)
    return _compare(_trace(loaded, alone, some), _trace(loaded, config, requests))


def _compare(part: _Trace, whole: _Trace) -> Comparison:
    """Compare what ``part`` holds with the same places of ``whole``."""
    num_positions = num_identical = 0
    max_difference = max_logit = 0.0
    for (request, index, position), logits in part.logits.items():
        key = (request, index)
        if part.tokens[key][:position] != whole.tokens[key][:position]:
            continue
        other = whole.logits[request, index, position]
        num_positions += 1
        if torch.equal(logits, other):
            num_identical += 1
        else:
            max_difference = max(max_difference, (logits.float() - other.float()).abs().max().item())
        max_logit = max(max_logit, logits.abs().max().item())
    return Comparison(
        num_completions=len(part.tokens),
        num_same=sum(whole.tokens[key] == tokens for key, tokens in part.tokens.items()),
        num_positions=num_positions,
        num_identical=num_identical,
        max_difference=max_difference,
        max_logit=max_logit,
    )
