"""majority@k: the answer that most of k completions give.

Definition. ``k`` of a problem's ``n`` completions are drawn without replacement. Each that has an answer
votes for it; one without (None) does not vote. The answer with the most votes is given; among several with
equally many, one is taken at random, each with the same chance; with no vote at all nothing is given, which
is wrong. The value is the chance of giving a right answer, over draws and ties: it is computed exactly, so it
is unbiased over draws and needs no seed. ``k = n`` is the usual self-consistency.

Source: Wang et al., "Self-consistency improves chain of thought reasoning in language models", 2022.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def majority_at_k(answers: Sequence[str | None], right: Collection[str], k: int) -> float:
    """The chance that the majority of ``k`` completions, drawn without replacement, is right.

    Costs at most about ``n * k**2`` operations for each right answer that was given.

    Args:
        answers: Of all of a problem's completions, in a form in which equal answers are equal strings.
        right: The right ones among them.
        k: Completions drawn.

    Raises:
        ConfigError: Unless ``1 <= k <= len(answers)``.
    """
    if not 1 <= k <= len(answers):
        raise ConfigError.of("k", got=k, expected=f"from 1 to {len(answers)}")
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    if k == len(answers):
        tied = [answer for answer, count in votes.items() if count == max(votes.values())]
        return sum(answer in right for answer in tied) / len(tied)
    return min(sum(_win(votes, answer, len(answers), k) for answer in right if answer in votes), 1.0)


def _win(votes: Counter[str], answer: str, num_completions: int, k: int) -> float:
    """The chance that ``answer`` wins.

    Each answer's draws are made independent binomials with p = k / n; the draw without replacement is what
    they are given that they sum to k. So all factors are probabilities, and nothing overflows for large n.
    """
    p = k / num_completions
    others = [count for other, count in votes.items() if other != answer]
    total = float(_binomial(num_completions, p)[k])
    won = 0.0
    for top in range(1, min(votes[answer], k) + 1):
        own = float(_binomial(votes[answer], p)[top])
        rivals = [count for count in others if count >= top]
        # Whoever has fewer completions than that cannot reach it: together they are one binomial.
        harmless = num_completions - votes[answer] - sum(rivals)
        won += own * _shared_win(rivals, harmless, top, k - top, p)
    return won / total


def _shared_win(rivals: Sequence[int], harmless: int, top: int, left: int, p: float) -> float:
    """Expected share of the win, when ``left`` completions go to others, none above ``top``.

    Returns:
        Sum over numbers of ties of ``P(left drawn, none above top, so many at top) / (1 + ties)``.
    """
    filled = np.zeros(left + 1)
    harmless_ones = _binomial(harmless, p)[: left + 1]
    filled[: len(harmless_ones)] = harmless_ones
    by_ties = [filled]  # per number of rivals at top: by completions drawn so far
    for count in rivals:
        pmf = _binomial(count, p)
        following = [np.convolve(chances, pmf[:top])[: left + 1] for chances in by_ties]
        if len(by_ties) <= left // top:
            following.append(np.zeros(left + 1))
        for chances, fewer in zip(following[1:], by_ties, strict=False):
            chances[top:] += pmf[top] * fewer[: left + 1 - top]
        by_ties = following
    return sum(float(chances[left]) / (1 + ties) for ties, chances in enumerate(by_ties))


def _binomial(count: int, p: float) -> Floats:
    """Probabilities of 0 to ``count`` successes, for ``p`` below 1."""
    drawn = np.arange(1, count + 1)
    steps = np.log(count + 1 - drawn) - np.log(drawn) + np.log(p) - np.log1p(-p)
    logs: Floats = count * np.log1p(-p) + np.concatenate([[0.0], np.cumsum(steps)])
    return np.exp(logs)
