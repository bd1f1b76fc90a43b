"""Which tokens may be drawn: sets of token ids as rows of bits, and the parameters that make them.

A mask is ``[num_words(V)]`` uint32: bit ``t % 32`` of word ``t // 32`` is set where token ``t`` may be drawn,
as grammar engines write them. Bits beyond the vocabulary mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.uint32]

MAX_BIAS = 100
"""Maximum size of a bias, OpenAI's."""

WORD = 32
"""Tokens of a word."""


def num_words(vocab_size: int) -> int:
    """Words of a mask."""
    return -(-vocab_size // WORD)


def mask_of(vocab_size: int, token_ids: Collection[int]) -> Mask:
    """The mask of these tokens alone; those beyond the vocabulary are left out."""
    mask = np.zeros(num_words(vocab_size), np.uint32)
    ids = np.fromiter(token_ids, np.int64, len(token_ids))
    ids = ids[ids < vocab_size]
    np.bitwise_or.at(mask, ids // WORD, np.left_shift(1, ids % WORD).astype(np.uint32))
    return mask


def mask_without(vocab_size: int, token_ids: Collection[int], mask: Mask | None = None) -> Mask:
    """A new mask of all tokens, or those of ``mask``, but these."""
    others: Mask = ~mask_of(vocab_size, token_ids)
    return others if mask is None else others & mask


def allows_any(mask: Mask, vocab_size: int) -> bool:
    """Whether any token may be drawn."""
    tail = vocab_size % WORD
    if not tail:
        return bool(mask.any())
    return bool(mask[:-1].any() or int(mask[-1]) & ((1 << tail) - 1))


def unpacked(mask: Mask, vocab_size: int) -> NDArray[np.bool_]:
    """``[V]``: whether each token may be drawn."""
    return np.unpackbits(mask.view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)


class TokenRules:
    """Which tokens a request's completions may draw, beside what its grammar says.

    Args:
        vocab_size: Token ids that the model knows.
        allowed: The only tokens that may be drawn; None for all.
        banned_early: Tokens that may not be among the first ``min_tokens``.
        min_tokens: See ``banned_early``.
        bad_words: Rows of tokens; the last token of each may not follow the others.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        allowed: Collection[int] | None = None,
        banned_early: Collection[int] = (),
        min_tokens: int = 0,
        bad_words: Sequence[Sequence[int]] = (),
    ) -> None:
        self._vocab_size = vocab_size
        self._allowed = None if allowed is None else mask_of(vocab_size, allowed)
        self._banned_early, self._min_tokens = frozenset(banned_early), min_tokens
        self._bad_words = [(list(word[:-1]), word[-1]) for word in bad_words]

    def mask(self, generated: Sequence[int], grammar: Mask | None = None) -> Mask | None:
        """The tokens that may come after ``generated``, and that ``grammar`` allows; None for all.

        Raises:
            ConfigError: If none may.
        """
        mask = grammar if self._allowed is None else self._allowed
        if grammar is not None and self._allowed is not None:
            mask = grammar & self._allowed
        banned = self._banned(generated)
        if banned:
            mask = mask_without(self._vocab_size, banned, mask)
        if mask is not None and mask is not self._allowed and not allows_any(mask, self._vocab_size):
            names = "structured_outputs, allowed_token_ids, bad_words and min_tokens"
            where = f"after {len(generated)} tokens" if generated else "as the first one"
            raise ConfigError(f"{names}: together they leave no token to draw {where}; relax one of them")
        return mask

    def _banned(self, generated: Sequence[int]) -> set[int]:
        banned = set(self._banned_early) if len(generated) < self._min_tokens else set[int]()
        for head, last in self._bad_words:
            if not head or generated[-len(head) :] == head:
                banned.add(last)
        return banned


def checked_bias(value: object) -> dict[int, float] | None:
    """``logit_bias`` with integers as keys, by ascending token; None where it changes nothing.

    Raises:
        ConfigError: If it is something else.
    """
    expected = f"a mapping from token ids to numbers, at least -{MAX_BIAS}, at most {MAX_BIAS}"
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise ConfigError.of("logit_bias", got=value, expected=expected)
    found: dict[int, float] = {}
    for key, bias in value.items():
        token = int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else key
        if not _is_token_id(token):
            raise ConfigError.of("logit_bias", got=key, expected=expected)
        is_number = isinstance(bias, (int, float)) and not isinstance(bias, bool)
        if not is_number or math.isnan(bias) or abs(bias) > MAX_BIAS:
            raise ConfigError.of(f"logit_bias[{token}]", got=bias, expected=expected)
        if token in found:
            raise ConfigError.of("logit_bias", got=f"token {token} twice", expected="each token once")
        found[token] = float(bias)
    return dict(sorted(found.items())) or None


def checked_ids(name: str, value: object) -> tuple[int, ...] | None:
    """A list of at least one token id, or None.

    Raises:
        ConfigError: If it is something else.
    """
    if value is None:
        return None
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not is_list or not value or not all(map(_is_token_id, value)):  # type: ignore[call-overload]
        raise ConfigError.of(name, got=value, expected="a list of token ids, at least one")
    return tuple(value)  # type: ignore[arg-type]


def checked_words(value: object) -> tuple[str, ...] | None:
    """``bad_words``, each once; None where there are none.

    Raises:
        ConfigError: If it is something else than a list of texts that are not empty.
    """
    if value is None:
        return None
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not is_list or not all(isinstance(word, str) and word for word in value):  # type: ignore[attr-defined]
        raise ConfigError.of("bad_words", got=value, expected="a list of non-empty strings")
    if any("\ud800" <= c <= "\udfff" for word in value for c in word):  # type: ignore[attr-defined]
        raise ConfigError.of("bad_words", got=value, expected="text without lone surrogates")
    return tuple(dict.fromkeys(value)) or None  # type: ignore[call-overload]


def checked_extra(value: object) -> dict[str, Any] | None:
    """``extra_args``: a mapping from names, or None.

    Raises:
        ConfigError: If it is something else.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise ConfigError.of("extra_args", got=value, expected="a mapping from names")
    return dict(value) or None


def _is_token_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
