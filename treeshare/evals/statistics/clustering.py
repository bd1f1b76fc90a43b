"""Filtered n@k: n submissions chosen from k completions by their behaviour.

As AlphaCode chose: completions that fail a problem's public tests are filtered out; those left are clustered
by what they print on generated inputs; submissions come from the largest cluster first, one from each in
turn, and again from the first when all have given one. A problem is solved if any submission is right.

Chance enters twice, and both are integrated exactly: which member of a cluster is submitted, and the order of
clusters of equal size. Where k is below the number of completions, draws of k are simulated with a seed.

Source: Li et al., "Competition-level code generation with AlphaCode", 2022.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import comb, inf
from typing import TYPE_CHECKING

import numpy as np

from treeshare.errors import ConfigError
from treeshare.evals.statistics.pass_at_k import pass_at_k

if TYPE_CHECKING:
    from collections.abc import Sequence

NUM_DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What choosing and judging a completion needs.

    Attributes:
        passed: Whether it is right: all tests, also the hidden ones.
        passed_public: Whether it passes the public tests; None where the problem has none, which filters
            nothing.
        signature: Stands for its outputs on the generated inputs; equal signatures are one cluster. None
            where it was not run or gave no output: such a completion is a cluster of its own.
    """

    passed: bool
    passed_public: bool | None
    signature: str | None


@dataclass(frozen=True, kw_only=True)
class _Cluster:
    size: int
    num_correct: int


def submissions_at_k(
    candidates: Sequence[Candidate],
    num_submissions: int,
    k: int,
    *,
    seed: int = 0,
    num_draws: int = NUM_DRAWS,
) -> float:
    """The chance that one of ``num_submissions`` chosen from ``k`` completions is right.

    Args:
        candidates: All of a problem's completions.
        num_submissions: Maximum number of submissions; fewer where the filter leaves fewer.
        k: Completions drawn without replacement; with all of them there is one draw, and the value is exact.
        seed: Of the draws.
        num_draws: Draws averaged when ``k`` is smaller.

    Raises:
        ConfigError: Unless ``1 <= k <= len(candidates)``, ``num_submissions >= 1`` and ``num_draws >= 1``.
    """
    if not 1 <= k <= len(candidates):
        raise ConfigError.of("k", got=k, expected=f"from 1 to {len(candidates)}")
    for name, value in (("num_submissions", num_submissions), ("num_draws", num_draws)):
        if value < 1:
            raise ConfigError.of(name, got=value, expected="at least 1")
    if k == len(candidates):
        return _solved(candidates, num_submissions)
    rng = np.random.default_rng(seed)
    draws = (rng.choice(len(candidates), size=k, replace=False) for _ in range(num_draws))
    return sum(_solved([candidates[i] for i in draw], num_submissions) for draw in draws) / num_draws


def _solved(candidates: Sequence[Candidate], num_submissions: int) -> float:
    """The chance that the problem is solved when all ``candidates`` were drawn."""
    clusters = _clusters(candidates)
    rounds, left = 0, num_submissions
    while (giving := [c for c in clusters if c.size > rounds]) and left >= len(giving):
        rounds, left = rounds + 1, left - len(giving)
    # In the last round clusters above this size give one more, and those of this size draw lots for the rest.
    boundary = giving[left - 1].size if giving and left else inf
    num_lots = left - sum(c.size > boundary for c in clusters) if giving else 0
    failed = 1.0
    lots = [1.0]  # by number of lots drawn: sum over the choices of the product of failures
    for cluster in clusters:
        without = _fails(cluster, min(rounds, cluster.size))
        if cluster.size < boundary:
            failed *= without
        elif cluster.size > boundary:
            failed *= _fails(cluster, rounds + 1)
        else:
            drawn = _fails(cluster, rounds + 1)
            lots = [a * without + b * drawn for a, b in zip([*lots, 0.0], [0.0, *lots], strict=True)]
    return 1.0 - failed * lots[num_lots] / comb(len(lots) - 1, num_lots)


def _clusters(candidates: Sequence[Candidate]) -> list[_Cluster]:
    """Clusters of what passes the filter, the largest first."""
    by_signature: dict[str | int, list[bool]] = defaultdict(list)
    for number, candidate in enumerate(candidates):
        if candidate.passed_public is not False:
            key = number if candidate.signature is None else candidate.signature
            by_signature[key].append(candidate.passed)
    found = [_Cluster(size=len(passed), num_correct=sum(passed)) for passed in by_signature.values()]
    return sorted(found, key=lambda cluster: -cluster.size)


def _fails(cluster: _Cluster, num_submitted: int) -> float:
    """The chance that none of so many members, taken at random, is right."""
    if num_submitted == 0:
        return 1.0
    return 1.0 - pass_at_k(cluster.size, cluster.num_correct, num_submitted)
