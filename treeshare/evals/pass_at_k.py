"""The unbiased estimator of pass@k.

Source: Chen et al., "Evaluating large language models trained on code", 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over problems.

    Attributes:
        value: The mean.
        standard_error: Of the mean over problems; None with a single problem, where it is undefined.
    """

    value: float
    standard_error: float | None


def pass_at_k(num_completions: int, num_correct: int, k: int) -> float:
    """The chance that at least one of ``k`` completions, drawn without replacement, is right.

    ``1 - C(n - c, k) / C(n, k)``, as a product of factors in [0, 1]: stable for any n.

    Raises:
        ConfigError: Unless ``0 <= num_correct <= num_completions`` and ``1 <= k <= num_completions``.
    """
    if not 0 <= num_correct <= num_completions:
        raise ConfigError.of("num_correct", got=num_correct, expected=f"from 0 to {num_completions}")
    if not 1 <= k <= num_completions:
        raise ConfigError.of("k", got=k, expected=f"from 1 to {num_completions}")
    if num_completions - num_correct < k:
        return 1.0
    left = np.arange(num_completions - num_correct + 1, num_completions + 1, dtype=np.float64)
    return float(-np.expm1(np.log1p(-k / left).sum()))


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of per-problem values."""
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return Estimate(value=mean, standard_error=None)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return Estimate(value=mean, standard_error=math.sqrt(variance / len(values)))


def pass_at_each_k(counts: Sequence[tuple[int, int]], ks: Sequence[int] | None = None) -> dict[int, Estimate]:
    """pass@k over problems.

    Args:
        counts: Per problem, completions and right ones.
        ks: Which k; by default powers of two, 5, 10, 100, and the fewest completions of a problem. A k that a
            problem has too few completions for is left out: it is undefined there.
    """
    fewest = min((n for n, _ in counts), default=0)
    if ks is None:
        ks = sorted({1, 5, 10, 100, fewest} | {1 << power for power in range(20)})
    return {k: estimate([pass_at_k(n, correct, k) for n, correct in counts]) for k in ks if 1 <= k <= fewest}
