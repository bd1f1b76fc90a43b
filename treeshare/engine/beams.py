"""Beam search: the most likely continuations of a prompt, by transformers' rules and vLLM's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from treeshare.config import require_bool, require_int
from treeshare.errors import ConfigError
from treeshare.vllm_names import AnsweredAttributes, answer_others

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from treeshare.engine.search import Branch, TokenSearch


@dataclass(frozen=True, kw_only=True)
class BeamSearchParams:
    """Parameters of ``LLM.beam_search``; vLLM's names.

    Attributes:
        beam_width: Number of hypotheses that are kept in each step, and that are returned.
        max_tokens: Maximum number of tokens of a hypothesis.
        ignore_eos: Treat end-of-sequence like any other token.
        temperature: 0 or 1, with the same result: hypotheses are compared by the model's own
            log-probabilities.
        length_penalty: See ``Beam.score``; above 0 favours long hypotheses.
        include_stop_str_in_output: Whether ``tokens`` includes a final end-of-sequence token.

    Raises:
        ConfigError: If a value is out of range.
    """

    beam_width: int
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    length_penalty: float = 1.0
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        require_int("beam_width", self.beam_width, low=1, high=MAX_BEAMS)
        require_int("max_tokens", self.max_tokens, low=1)
        if self.temperature not in (0, 1):
            raise ConfigError.of(
                "temperature", got=self.temperature, expected="0 or 1: beams are not sampled"
            )
        for name in ("ignore_eos", "include_stop_str_in_output"):
            require_bool(name, getattr(self, name))
        number = self.length_penalty
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not abs(number) <= MAX_PENALTY:
            raise ConfigError.of(
                "length_penalty", got=number, expected=f"a number from -{MAX_PENALTY} to {MAX_PENALTY}"
            )


answer_others(BeamSearchParams)


def require_beams(params: object) -> None:
    """Raise ``ConfigError`` unless these are parameters of a beam search."""
    if not isinstance(params, BeamSearchParams):
        expected = "BeamSearchParams(beam_width=..., max_tokens=...)"
        raise ConfigError.of("params", got=params, expected=expected)


MAX_BEAMS = 1024

MAX_PENALTY = 100
"""Of lengths; beyond, scores could overflow."""


@dataclass(frozen=True, kw_only=True)
class BeamSearchSequence(AnsweredAttributes):
    """One of the best continuations; vLLM's names.

    Attributes:
        tokens: Of prompt and continuation; a final end-of-sequence token only where it was asked for.
        text: Of ``tokens``, special tokens left out; None without a tokenizer.
        cum_logprob: Sum of the continuation's log-probabilities, end-of-sequence included.
        score: By which they are ordered; see ``Beam``.
        finish_reason: ``stop`` or ``length``.
        stop_reason: None, as no strings or tokens of the user's end it.
    """

    tokens: list[int]
    text: str | None
    cum_logprob: float
    score: float
    finish_reason: str
    stop_reason: int | str | None = None


@dataclass(frozen=True, kw_only=True)
class BeamSearchOutput:
    """A prompt's best continuations, best first.

    Attributes:
        sequences: ``beam_width`` of them; fewer where the vocabulary has no more.
    """

    sequences: list[BeamSearchSequence]


def beams_of_prompt(
    search: TokenSearch,
    prompt_token_ids: Sequence[int],
    params: BeamSearchParams,
    eos_token_ids: frozenset[int],
    decode: Callable[[Sequence[int]], str] | None,
) -> BeamSearchOutput:
    """The best continuations of a prompt, as ``LLM.beam_search`` returns them.

    Args:
        search: A fresh search of the prompt.
        prompt_token_ids: The prompt.
        params: How to look for them.
        eos_token_ids: Tokens that end one, unless they are ignored.
        decode: From token ids to text, if there is a tokenizer.
    """
    ends = frozenset() if params.ignore_eos else eos_token_ids
    beams = beam_search(
        search, num_beams=params.beam_width, eos_token_ids=ends, length_penalty=params.length_penalty
    )
    sequences = []
    for beam in beams:
        has_ended = beam.token_ids[-1] in ends
        shown = beam.token_ids[:-1] if has_ended and not params.include_stop_str_in_output else beam.token_ids
        tokens = [*prompt_token_ids, *shown]
        sequences.append(
            BeamSearchSequence(
                tokens=tokens,
                text=None if decode is None else decode(tokens),
                cum_logprob=beam.cumulative_logprob,
                score=beam.score,
                finish_reason="stop" if has_ended else "length",
            )
        )
    return BeamSearchOutput(sequences=sequences)


@dataclass(frozen=True, kw_only=True)
class Beam:
    """A hypothesis of a beam search.

    Attributes:
        token_ids: Its tokens, a final end-of-sequence token included.
        cumulative_logprob: Sum of its tokens' log-probabilities.
        score: ``cumulative_logprob`` over the number of tokens to the power of the length penalty.
    """

    token_ids: tuple[int, ...]
    cumulative_logprob: float
    score: float


def beam_search(
    search: TokenSearch, *, num_beams: int, eos_token_ids: frozenset[int], length_penalty: float = 1.0
) -> list[Beam]:
    """The best continuations by beam search, best first; transformers' rules, without its early stopping.

    In each step the ``2 * num_beams`` best extensions are considered: an end of sequence among the first
    ``num_beams`` becomes a hypothesis, the best others continue. It ends when no running beam can be better
    than the worst of ``num_beams`` hypotheses, or at ``search.max_tokens``.

    Args:
        search: A fresh search.
        num_beams: Beams that continue.
        eos_token_ids: Tokens that end a hypothesis.
        length_penalty: See ``Beam.score``; above 0 favours long ones.
    """
    beams, finished = [search.root], list[Beam]()
    for length in range(1, search.max_tokens + 1):
        totals = np.stack([branch.cumulative_logprob + branch.logprobs for branch in beams])
        vocab_size = totals.shape[1]
        best = np.argsort(-totals.ravel(), kind="stable")[: 2 * num_beams]
        going_on: list[tuple[Branch, int]] = []
        for place, flat in enumerate(best):
            branch, token = beams[flat // vocab_size], int(flat % vocab_size)
            if token in eos_token_ids:
                if place < num_beams:
                    finished.append(_beam(branch, token, length_penalty))
            elif len(going_on) < num_beams:
                going_on.append((branch, token))
        finished = sorted(finished, key=lambda beam: -beam.score)[:num_beams]
        if length == search.max_tokens:
            finished += [_beam(branch, token, length_penalty) for branch, token in going_on]
            break
        reachable = max(float(b.cumulative_logprob + b.logprobs[t]) for b, t in going_on)
        if len(finished) == num_beams and finished[-1].score >= reachable / length**length_penalty:
            break
        extended = search.extend(going_on)
        search.drop(beams)
        beams = extended
    return sorted(finished, key=lambda beam: -beam.score)[:num_beams]


def _beam(branch: Branch, token: int, length_penalty: float) -> Beam:
    total = branch.cumulative_logprob + float(branch.logprobs[token])
    length = len(branch.token_ids) + 1
    return Beam(
        token_ids=(*branch.token_ids, token), cumulative_logprob=total, score=total / length**length_penalty
    )
