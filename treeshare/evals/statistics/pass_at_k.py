"""The unbiased estimator of pass@k, its errors over problems, and its curve.

Source: Chen et al., "Evaluating large language models trained on code", 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare.errors import ConfigError
from treeshare.evals.statistics.bootstrap import Interval, mean_and_error, mean_intervals

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over problems.

    Attributes:
        value: The mean.
        standard_error: Of the mean over problems, ``s / sqrt(m)``; None with a single problem, where it is
            undefined. See ``bootstrap.mean_and_error`` for why it is not the bootstrap's.
        interval: 95 % BCa bootstrap interval over problems; None where undefined (``mean_intervals``).
    """

    value: float
    standard_error: float | None
    interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"value": self.value, "se": self.standard_error, "interval": self.interval}


def pass_at_k(num_completions: int, num_correct: int, k: int) -> float:
    """The chance that at least one of ``k`` completions, drawn without replacement, is right.

    ``1 - C(n - c, k) / C(n, k)``, as a sum of ``min(c, k)`` logarithms: stable for any n.

    Raises:
        ConfigError: Unless ``0 <= num_correct <= num_completions`` and ``1 <= k <= num_completions``.
    """
    if not 0 <= num_correct <= num_completions:
        raise ConfigError.of("num_correct", got=num_correct, expected=f"from 0 to {num_completions}")
    if not 1 <= k <= num_completions:
        raise ConfigError.of("k", got=k, expected=f"from 1 to {num_completions}")
    if num_completions - num_correct < k:
        return 1.0
    # The quotient does not change when k and c are exchanged: the smaller is the number of factors.
    few, many = sorted((num_correct, k))
    if few <= 1:
        return few * many / num_completions  # exactly c / n for pass@1
    left = np.arange(num_completions - few + 1, num_completions + 1, dtype=np.float64)
    return float(-np.expm1(np.log1p(-many / left).sum()))


def estimates(values: NDArray[np.float64], seed: int = 0) -> list[Estimate]:
    """Means over problems with their errors.

    Args:
        values: float64 ``[num_problems, num_columns]``, at least one problem.
        seed: Of the bootstrap.

    Returns:
        One for each column.
    """
    intervals = mean_intervals(values, seed=seed)
    found = []
    for column, interval in zip(values.T, intervals, strict=True):
        mean, error = mean_and_error(column)
        found.append(Estimate(value=mean, standard_error=error, interval=interval))
    return found


def pass_at_each_k(
    counts: Sequence[tuple[int, int]], ks: Sequence[int] | None = None, *, seed: int = 0
) -> dict[int, Estimate]:
    """pass@k over problems.

    Args:
        counts: Per problem, completions and right ones.
        ks: Which k; by default ``table_ks`` of the fewest completions of a problem. A k that a problem has
            too few completions for is left out: it is undefined there.
        seed: Of the bootstrap.
    """
    fewest = min((n for n, _ in counts), default=0)
    wanted = table_ks(fewest) if ks is None else [k for k in ks if 1 <= k <= fewest]
    if not wanted:
        return {}
    return dict(zip(wanted, estimates(pass_at_k_matrix(counts, wanted), seed), strict=True))


def pass_at_k_matrix(counts: Sequence[tuple[int, int]], ks: Sequence[int]) -> NDArray[np.float64]:
    """pass@k of every problem, float64 ``[num_problems, num_ks]``.

    Raises:
        ConfigError: As ``pass_at_k``.
    """
    known = cache(pass_at_k)  # many problems have the same counts, 0 first of all
    return np.array([[known(n, correct, k) for k in ks] for n, correct in counts]).reshape(-1, len(ks))


def table_ks(num_completions: int) -> list[int]:
    """The k of a table up to ``num_completions``: powers of two, 5, 10, 100, and the last."""
    powers = {1 << power for power in range(num_completions.bit_length())}
    return sorted(k for k in powers | {5, 10, 100, num_completions} if 1 <= k <= num_completions)


def curve_ks(num_completions: int, num_points: int = 48) -> list[int]:
    """The k of a curve up to ``num_completions``: all if few, else evenly on a log scale."""
    if num_completions <= num_points:
        return list(range(1, num_completions + 1))
    return sorted({round(k) for k in np.geomspace(1, num_completions, num_points)})
