"""Sampling parameters, with vLLM's names and defaults."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import FrozenInstanceError, asdict, dataclass, field, fields, replace
from typing import Any, Self

from treeshare.errors import ConfigError
from treeshare.sampling.masks import checked_bias, checked_extra, checked_ids, checked_words
from treeshare.sampling.structured import StructuredOutputsParams
from treeshare.vllm_names import answer_others

_MAX_SEED = 2**64 - 1

MAX_N = 2**20
"""Maximum number of completions of a prompt: each costs memory before its first token."""

MAX_COUNT = 2**31 - 1
"""Maximum number of tokens that a filter keeps, and maximum token id: they end in arrays of fixed width."""

MAX_LENGTH = 2**63 - 1
"""Maximum length of a completion that may be asked for; the model's own cuts it."""

NOT_FOR_DRAWING = frozenset(
    {
        "n", "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "min_tokens",
        "skip_special_tokens", "include_stop_str_in_output", "prompt_logprobs", "thinking_token_budget",
        "allowed_token_ids", "bad_words", "structured_outputs", "extra_args",
    }
)  # fmt: skip
"""Parameters that do not change how a token is drawn from a row of logits.

``min_tokens``, ``allowed_token_ids``, ``bad_words``, ``structured_outputs`` and ``thinking_token_budget`` do
so only through ``RowSpec.mask``, ``extra_args`` through logits processors.
"""


@functools.cache
def _drawing_defaults(kind: Any) -> tuple[tuple[str, object], ...]:  # noqa: ANN401
    """The parameters that may change how a token is drawn, each with the value at which it does not."""
    return tuple((own.name, own.default) for own in fields(kind) if own.name not in NOT_FOR_DRAWING)


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the completions of one prompt are sampled.

    The parameters apply in the order of vLLM V1: masks (``structured_outputs``, ``allowed_token_ids``,
    ``bad_words``, ``min_tokens``), ``logit_bias``, penalties, temperature, min-p, top-k, top-p. Each filter
    works on the tokens that the previous ones kept.

    Attributes:
        n: Number of completions, at most ``MAX_N``.
        temperature: Divides the logits; 0 always takes the most likely token, on a tie the lowest id.
        top_p: Keep the most likely tokens whose probabilities together reach this fraction of what min-p and
            top-k kept, in (0, 1]; 1 keeps all.
        top_k: Keep this many of the most likely tokens, and those tied with the last; 0 or -1 keeps all, and
            so does a number above the vocabulary's size.
        min_p: Keep tokens with at least this fraction of the probability of the most likely one, after
            temperature, in [0, 1].
        presence_penalty: Subtracted from the logits of tokens that were generated before, in [-2, 2].
        frequency_penalty: Subtracted once per time that a token was generated, in [-2, 2].
        repetition_penalty: Divides positive and multiplies negative logits of tokens in prompt or completion;
            in [0.01, 100].
        seed: Replaces the seed of the run.
        stop: Strings that end a completion; its text is cut before them.
        stop_token_ids: Tokens that end a completion.
        ignore_eos: Do not end at an end-of-sequence token.
        max_tokens: Maximum number of tokens to generate; None: as many as the model's length allows.
        min_tokens: Minimum number of tokens before the end: until then stop tokens and end-of-sequence (also
            with ``ignore_eos``) cannot be drawn, and stop strings are ignored.
        logprobs: Report the log-probabilities of the drawn token and of this many most likely tokens at each
            position; -1 reports the whole vocabulary, None nothing.
        prompt_logprobs: The same for each token of the prompt except the first.
        skip_special_tokens: Leave special tokens out of the text.
        include_stop_str_in_output: Cut the text after the stop string instead of before it.
        logit_bias: Numbers in [-100, 100] to add to the logits of tokens; keys may be text with digits.
        allowed_token_ids: The only tokens that can be drawn; None for all.
        bad_words: Texts that must not be generated, in their tokenisations at the beginning of a text and
            after a space.
        structured_outputs: A JSON schema, regular expression, list of choices or grammar that the text must
            fit; also given as a mapping. The completion ends when the text is complete, whatever
            ``min_tokens`` and ``ignore_eos`` say.
        thinking_token_budget: Maximum number of tokens of the model's reasoning; then its end tag is forced.
        extra_args: Arguments for the logits processors of ``LLM``.

    Raises:
        ConfigError: If a value is of the wrong type or out of range.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = None
    structured_outputs: StructuredOutputsParams | None = None
    thinking_token_budget: int | None = None
    extra_args: Mapping[str, Any] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        self._check_int("n", 1, MAX_N)
        if self.max_tokens is not None:
            self._check_int("max_tokens", 1, MAX_LENGTH)
        self._check_int("min_tokens", 0, self.max_length)
        self._check_int("top_k", -1, MAX_COUNT)
        for name, low, high in (
            ("seed", 0, _MAX_SEED),
            ("logprobs", -1, MAX_COUNT),
            ("prompt_logprobs", -1, MAX_COUNT),
            ("thinking_token_budget", 0, MAX_COUNT),
        ):
            if getattr(self, name) is not None:
                self._check_int(name, low, high)
        self._check_number("temperature", 0, math.inf)
        self._check_number("top_p", 0, 1, open_low=True)
        self._check_number("min_p", 0, 1)
        self._check_number("presence_penalty", -2, 2)
        self._check_number("frequency_penalty", -2, 2)
        self._check_number("repetition_penalty", 0.01, 100)  # beyond, logits could overflow
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError.of(name, got=getattr(self, name), expected="True or False")
        self._check_stops()
        for name, value in (
            ("logit_bias", checked_bias(self.logit_bias)),
            ("allowed_token_ids", checked_ids("allowed_token_ids", self.allowed_token_ids)),
            ("bad_words", checked_words(self.bad_words)),
            ("structured_outputs", StructuredOutputsParams.of(self.structured_outputs)),
            ("extra_args", checked_extra(self.extra_args)),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SamplingParams:
        """Parameters from a mapping.

        Raises:
            ConfigError: If a key is unknown (the message names the nearest known one) or a value out of
                range.
        """
        if not isinstance(values, Mapping):
            raise ConfigError.of("sampling parameters", got=type(values).__name__, expected="a mapping")
        return cls(**values)

    def replace(self, **changes: Any) -> Self:  # noqa: ANN401
        """A copy with ``changes``; raises as the class does."""
        return replace(self, **changes)

    def clone(self) -> Self:
        """The parameters themselves, because they are immutable."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """All parameters, ready for JSON."""
        values = {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }
        if self.logit_bias is not None:
            values["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        if self.structured_outputs is not None:
            values["structured_outputs"] = self.structured_outputs.to_dict()
        return values

    @property
    def max_length(self) -> int:
        """``max_tokens``; if that is None, more than any model's length."""
        return MAX_LENGTH if self.max_tokens is None else self.max_tokens

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return self.stop  # type: ignore[return-value]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """``stop_token_ids`` as a tuple."""
        return self.stop_token_ids  # type: ignore[return-value]

    @property
    def has_penalties(self) -> bool:
        """Whether the logits depend on the tokens so far."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1)

    def needs_more_than(self, honoured: frozenset[str]) -> bool:
        """Whether a parameter that ``honoured`` lacks changes how a token is drawn.

        A fast path names what it honours, so a parameter that is added later is never silently ignored.
        """
        return any(
            name not in honoured and getattr(self, name) != default
            for name, default in _drawing_defaults(type(self))  # type: ignore[arg-type]
        )

    def _check_int(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError.of(name, got=value, expected=f"an integer from {low} to {high}")

    def _check_number(self, name: str, low: float, high: float, *, open_low: bool = False) -> None:
        value = getattr(self, name)
        below = "more than" if open_low else "at least"
        expected = f"a number, {below} {low}" + ("" if high == math.inf else f", at most {high}")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError.of(name, got=value, expected=expected)
        is_finite = abs(value) <= sys.float_info.max
        if not is_finite or value < low or value > high or (open_low and value == low):
            raise ConfigError.of(name, got=value, expected=expected)
        object.__setattr__(self, name, float(value))  # an integer might not fit in an array's

    def _check_stops(self) -> None:
        stop = () if self.stop is None else [self.stop] if isinstance(self.stop, str) else self.stop
        if not isinstance(stop, Sequence) or not all(isinstance(text, str) and text for text in stop):
            raise ConfigError.of("stop", got=self.stop, expected="a non-empty string, or a list of them")
        ids = () if self.stop_token_ids is None else self.stop_token_ids
        is_ids = isinstance(ids, Sequence) and not isinstance(ids, (str, bytes))
        if not is_ids or not all(
            isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= MAX_COUNT for i in ids
        ):
            raise ConfigError.of("stop_token_ids", got=ids, expected="a list of token ids")
        object.__setattr__(self, "stop", tuple(stop))
        object.__setattr__(self, "stop_token_ids", tuple(ids))


def _refuse_change(_: SamplingParams, name: str, __: object) -> None:
    raise FrozenInstanceError(f"{name}: SamplingParams cannot be changed; use params.replace({name}=...)")


answer_others(SamplingParams)
SamplingParams.__setattr__ = _refuse_change  # type: ignore[assignment]
