"""Bootstrap intervals of means over problems.

The problems are what is resampled, not the completions: the question is what another set of such problems
would have given, and a problem's completions are anything but independent.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUM_RESAMPLES = 5000
CONFIDENCE = 0.95

_MAX_WEIGHTS = 1 << 22
_NORMAL = NormalDist()

Interval = tuple[float, float]


def mean_intervals(
    values: NDArray[np.float64],
    *,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
    confidence: float = CONFIDENCE,
) -> list[Interval | None]:
    """BCa intervals of the means of several columns, from the same resamples of the rows.

    BCa (bias-corrected and accelerated) rather than percentile: near 0 and 1, where pass@k lives, the
    distribution of the mean is skewed, and percentile intervals miss on one side.

    Args:
        values: float64 ``[num_problems, num_columns]``.
        seed: Of the resampling; the same seed gives the same intervals.
        num_resamples: Resamples of the problems.
        confidence: Wanted coverage, between 0 and 1.

    Returns:
        ``(low, high)`` for each column. None where it is undefined: one problem, or the same value for all
        of them; no resample differs then, which says nothing about other problems.

    Raises:
        ConfigError: If ``num_resamples`` or ``confidence`` is out of range.

    Source: Efron, "Better bootstrap confidence intervals", 1987. Held by ``tests/evals/test_bootstrap.py``.
    """
    if num_resamples < 1:
        raise ConfigError.of("num_resamples", got=num_resamples, expected="at least 1")
    if not 0 < confidence < 1:
        raise ConfigError.of("confidence", got=confidence, expected="between 0 and 1")
    means = _resampled_means(values, np.random.default_rng(seed), num_resamples)
    return [_bca(column, means[:, i], confidence) for i, column in enumerate(values.T)]


def _resampled_means(
    values: NDArray[np.float64], rng: np.random.Generator, num_resamples: int
) -> NDArray[np.float64]:
    """Means of resamples ``[num_resamples, num_columns]``; memory stays bounded for any number of rows."""
    num_rows = len(values)
    means = np.empty((num_resamples, values.shape[1]))
    chunk = max(_MAX_WEIGHTS // max(num_rows, 1), 1)
    for begin in range(0, num_resamples, chunk):
        size = min(chunk, num_resamples - begin)
        drawn = rng.integers(num_rows, size=(size, num_rows)) + num_rows * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * num_rows).reshape(size, num_rows)
        means[begin : begin + size] = weights @ values / num_rows
    return means


def _bca(values: NDArray[np.float64], means: NDArray[np.float64], confidence: float) -> Interval | None:
    if len(values) < 2 or values.min() == values.max():
        return None
    deviations = values - values.mean()
    acceleration = float((deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5))
    # Ties with the mean count half: with few problems they are frequent. Kept off 0 and 1 for the quantile.
    mean, slack = values.mean(), 1e-12
    below = (means < mean - slack).mean() + (np.abs(means - mean) <= slack).mean() / 2
    half = 0.5 / len(means)
    bias = _NORMAL.inv_cdf(float(np.clip(below, half, 1 - half)))
    ends = []
    for level in ((1 - confidence) / 2, (1 + confidence) / 2):
        z = bias + _NORMAL.inv_cdf(level)
        shrink = 1 - acceleration * z
        ends.append(_NORMAL.cdf(bias + z / shrink) if shrink > 0 else float(acceleration > 0))
    low, high = np.quantile(means, ends)
    return float(low), float(high)


def mean_and_error(values: NDArray[np.float64]) -> tuple[float, float | None]:
    """Mean and standard error of the mean; the error is None with fewer than two values, where undefined.

    The error is the analytic one, ``s / sqrt(m)``. It is what the bootstrap's tends to with ever more
    resamples, times ``sqrt(m / (m - 1))``: without that factor it is too small for few problems, and it has
    no noise of its own.
    """
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))
