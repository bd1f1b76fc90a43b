"""Calibration: whether completions that the model gives p are right in p of all cases.

Source: Spiess et al., "Calibration and correctness of language models for code", arXiv 2402.02047.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from treeshare.errors import ConfigError, ShapeError
from treeshare.installation import how_to_add

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

NUM_BINS = 10
NUM_FOLDS = 5

Rescaling = Literal["platt", "isotonic"]

_LARGEST_SCORE = 40.0


@dataclass(frozen=True, kw_only=True)
class Bin:
    """A column of a reliability diagram.

    Attributes:
        low: Its lowest confidence.
        high: Its greatest confidence.
        count: Completions in it.
        confidence: Their mean confidence; None if there are none.
        accuracy: The share of them that is right; None if there are none.
        interval: 95 % Wilson interval of that share, as if they were independent; None if there are none.
    """

    low: float
    high: float
    count: int
    confidence: float | None
    accuracy: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How well confidences fit.

    Attributes:
        num_completions: How many there were.
        base_rate: The share that is right.
        ece: Expected calibration error: mean over completions of ``|confidence - accuracy|`` of their bin.
        brier: Mean squared difference between confidence and outcome.
        skill_score: ``1 - brier / b`` where ``b`` is the Brier score of always giving the base rate: 1 is
            perfect, 0 no better than that, below 0 worse. None where all or none are right: undefined.
        bins: The reliability diagram, from low confidence to high.
    """

    num_completions: int
    base_rate: float
    ece: float
    brier: float
    skill_score: float | None
    bins: list[Bin]


def calibrate(confidences: Floats, right: NDArray[np.bool_], *, num_bins: int = NUM_BINS) -> Calibration:
    """Measure calibration in bins of equal width.

    Args:
        confidences: float64 ``[num_completions]``, from 0 to 1; at least one.
        right: bool ``[num_completions]``.
        num_bins: Bins; a confidence on a border belongs to the bin above.

    Raises:
        ShapeError: If the arrays do not fit together or are empty.
        ConfigError: If a confidence is not from 0 to 1, or there are no bins.
    """
    _check(confidences, right)
    if num_bins < 1:
        raise ConfigError.of("num_bins", got=num_bins, expected="at least 1")
    if not ((confidences >= 0) & (confidences <= 1)).all():
        raise ConfigError("confidences: got one outside of [0, 1], expected probabilities")
    base_rate = float(right.mean())
    brier = float(((confidences - right) ** 2).mean())
    reference = base_rate * (1 - base_rate)
    places = np.minimum((confidences * num_bins).astype(np.int64), num_bins - 1)
    bins = [
        _bin(i / num_bins, (i + 1) / num_bins, confidences[places == i], right[places == i])
        for i in range(num_bins)
    ]
    gaps = [
        b.count * abs(b.confidence - b.accuracy)
        for b in bins
        if b.confidence is not None and b.accuracy is not None
    ]
    return Calibration(
        num_completions=len(right),
        base_rate=base_rate,
        ece=math.fsum(gaps) / len(right),
        brier=brier,
        skill_score=1 - brier / reference if reference else None,
        bins=bins,
    )


def _bin(low: float, high: float, confidences: Floats, right: NDArray[np.bool_]) -> Bin:
    count = len(right)
    if not count:
        return Bin(low=low, high=high, count=0, confidence=None, accuracy=None, interval=None)
    return Bin(
        low=low,
        high=high,
        count=count,
        confidence=float(confidences.mean()),
        accuracy=float(right.mean()),
        interval=_wilson(int(right.sum()), count),
    )


def _wilson(num_right: int, count: int, z: float = 1.959963984540054) -> tuple[float, float]:
    share, square = num_right / count, z * z / count
    middle = share + square / 2
    spread = z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max((middle - spread) / (1 + square), 0.0), min((middle + spread) / (1 + square), 1.0)


def rescale(
    log_confidences: Floats,
    right: NDArray[np.bool_],
    groups: Sequence[Hashable],
    method: Rescaling,
    *,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> Floats:
    """Confidences that experience with other problems suggests, by cross-validation.

    Each fold's completions are rescaled by what was fitted to the other folds. A problem's completions are
    all in one fold: else the fit would know the problem that it is tested on.

    ``platt`` fits ``1 / (1 + exp(-(a s + b)))`` to the score ``s``, the log-odds of the confidence, with
    Platt's smoothed targets, so that it exists also where one class is missing. ``isotonic`` fits the best
    non-decreasing step function.

    Args:
        log_confidences: float64 ``[num_completions]``, natural logs, at most 0.
        right: bool ``[num_completions]``.
        groups: Per completion, its problem.
        method: ``platt`` or ``isotonic``.
        num_folds: Folds; as many as problems, if those are fewer.
        seed: Of the assignment of problems to folds.

    Returns:
        float64 ``[num_completions]``, from 0 to 1.

    Raises:
        ShapeError: If the arrays do not fit together or are empty.
        ConfigError: If scikit-learn is missing, or there are fewer than two problems or folds.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999; Zadrozny and Elkan,
    "Transforming classifier scores into accurate multiclass probability estimates", 2002.
    """
    _check(log_confidences, right)
    if len(groups) != len(right):
        raise ShapeError(f"groups: got {len(groups)}, expected one for each of {len(right)} completions")
    if method not in ("platt", "isotonic"):
        raise ConfigError.of("method", got=method, expected="platt | isotonic")
    names = list(dict.fromkeys(groups))
    if min(len(names), num_folds) < 2:
        raise ConfigError(
            f"rescaling: got {len(names)} problems and {num_folds} folds, expected at least two of both"
        )
    fit = _fit_platt if method == "platt" else _fit_isotonic
    scores = _log_odds(log_confidences)
    order = np.random.default_rng(seed).permutation(len(names))
    fold_of = {names[place]: i % num_folds for i, place in enumerate(order)}
    folds = np.array([fold_of[group] for group in groups])
    rescaled = np.empty(len(right))
    for fold in range(min(num_folds, len(names))):
        held_out = folds == fold
        rescaled[held_out] = fit(scores[~held_out], right[~held_out], scores[held_out])
    return np.clip(rescaled, 0.0, 1.0)


def _log_odds(log_confidences: Floats) -> Floats:
    """``log p - log(1 - p)`` from ``log p``; a certainty, which has none, counts as the largest score."""
    with np.errstate(divide="ignore"):
        odds: Floats = log_confidences - np.log(-np.expm1(log_confidences))
    return np.minimum(odds, _LARGEST_SCORE)


def _fit_platt(scores: Floats, right: NDArray[np.bool_], wanted: Floats) -> Floats:
    """Logistic regression on smoothed targets: each completion counts as right and wrong, by its target."""
    linear_model = _scikit("linear_model")
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    targets = np.where(right, (num_right + 1) / (num_right + 2), 1 / (num_wrong + 2))
    # In units of their spread: sums of log-probabilities go to -1000, where the solver would crawl.
    centre, spread = scores.mean(), scores.std() or 1.0
    features = ((np.concatenate([scores, scores]) - centre) / spread)[:, None]
    classes = np.repeat([True, False], len(scores))
    model = linear_model.LogisticRegression(C=np.inf, max_iter=1000)
    model.fit(features, classes, sample_weight=np.concatenate([targets, 1 - targets]))
    fitted: Floats = model.predict_proba(((wanted - centre) / spread)[:, None])[:, 1]
    return fitted


def _fit_isotonic(scores: Floats, right: NDArray[np.bool_], wanted: Floats) -> Floats:
    isotonic = _scikit("isotonic")
    model = isotonic.IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    fitted: Floats = model.fit(scores, right.astype(np.float64)).predict(wanted)
    return fitted


def _scikit(name: str) -> Any:  # noqa: ANN401
    import importlib

    try:
        return importlib.import_module(f"sklearn.{name}")
    except ImportError as error:
        raise ConfigError(f"rescaling: scikit-learn is not installed; {how_to_add('evals')}") from error


def _check(values: Floats, right: NDArray[np.bool_]) -> None:
    if values.ndim != 1 or values.shape != right.shape or not len(values):
        raise ShapeError(
            f"confidences and outcomes: got shapes {values.shape} and {right.shape}, "
            "expected one dimension of the same length, at least 1"
        )
