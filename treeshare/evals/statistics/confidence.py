"""How confident the model was in a completion, from its tokens' probabilities.

All are of the model's own distribution, before temperature, over everything generated: the tokens that made
the stop string are in it too.

- ``product``: the probability of the whole, ``exp(sum of log p)``. Long completions are always unlikely.
- ``mean``: the geometric mean of the tokens' probabilities, ``exp(mean of log p)``. It needs only the sum;
  the arithmetic mean, which the source uses, needs each token's, and is never smaller.
- ``tail``: the geometric mean over the least likely tenth of the tokens, at least one: how sure the model was
  where it was least sure. It needs each token's log-probability.

Source: Spiess et al., "Calibration and correctness of language models for code", arXiv 2402.02047, section 3.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

from treeshare.errors import ConfigError, DataError, one_line

if TYPE_CHECKING:
    from treeshare.runs import Record

Confidence = Literal["mean", "product", "tail"]

TAIL_SHARE = 0.1


def log_confidence(record: Record, kind: Confidence) -> float:
    """Natural log of a completion's confidence, at most 0.

    Raises:
        ConfigError: If ``kind`` is none of the three.
        DataError: If there are no tokens, or ``tail`` is asked for and the run has no ``logprobs``.
    """
    if kind not in get_args(Confidence):
        raise ConfigError.of("confidence", got=kind, expected=" | ".join(get_args(Confidence)))
    if not record.token_ids:
        raise DataError(f"{_name(record)}: has no tokens, so it has no confidence")
    if kind == "product":
        return min(record.cumulative_logprob, 0.0)
    if kind == "mean":
        return min(record.cumulative_logprob / len(record.token_ids), 0.0)
    logprobs = sorted(token_logprobs(record))
    tail = logprobs[: math.ceil(TAIL_SHARE * len(logprobs))]
    return min(math.fsum(tail) / len(tail), 0.0)


def token_logprobs(record: Record) -> list[float]:
    """The log-probability of each generated token.

    Raises:
        DataError: If the record has none, or they do not fit its tokens.
    """
    reported = (record.model_extra or {}).get("logprobs")
    if reported is None:
        raise DataError(f"{_name(record)}: has no logprobs; sample with --logprobs 0")
    found = []
    try:
        for token_id, entries in zip(record.token_ids, reported, strict=True):
            found.append(_of_token(token_id, entries))
    except (TypeError, ValueError) as error:
        raise DataError(f"{_name(record)}: logprobs do not fit the tokens: {one_line(error)}") from error
    return found


def _of_token(token_id: int, entries: Any) -> float:  # noqa: ANN401
    for entry_id, logprob, _rank in entries:
        if entry_id == token_id and isinstance(logprob, (int, float)) and math.isfinite(logprob):
            return float(logprob)
    raise ValueError(f"token {token_id} is not among them")


def _name(record: Record) -> str:
    return f"{one_line(record.task_id)} completion {record.completion_index}"
