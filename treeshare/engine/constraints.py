"""Which tokens a request's completions may draw: token rules and grammar, checked before anything runs."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from treeshare.errors import ConfigError
from treeshare.sampling.grammar import GrammarCompiler
from treeshare.sampling.masks import TokenRules
from treeshare.text import encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from treeshare.engine.hooks import ProcessorBatch
    from treeshare.engine.sequence import Request
    from treeshare.models import LoadedModel
    from treeshare.sampling import SamplingParams
    from treeshare.sampling.grammar import GrammarState

MAX_BAD_WORDS, MAX_BAD_TOKENS = 128, 1024
"""Maximum number of rows of tokens that ``bad_words`` become, and of their tokens together; vLLM's."""

_NUM_KEPT = 256
"""Lists of bad words whose tokens are kept."""


class Constraints:
    """Makes the rules of requests, and computes grammars' masks ahead while the model runs.

    Args:
        loaded: The model.
        processors: The user's logits processors, which may refuse a request.
    """

    def __init__(self, loaded: LoadedModel, processors: ProcessorBatch) -> None:
        self._loaded, self._processors = loaded, processors
        self._grammars = GrammarCompiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_token_ids)
        self._words: dict[tuple[str, ...], list[list[int]]] = {}
        self._worker: tuple[int, ThreadPoolExecutor] | None = None
        self._pending: Future[None] | None = None

    def check(self, request: Request) -> None:
        """Refuse what could never draw a first token.

        Raises:
            ConfigError: If a token is none of the model's, a grammar is broken or impossible, or all together
                leave no token.
        """
        params, size = request.params, self._loaded.vocab_size
        for name in ("logit_bias", "allowed_token_ids"):
            ids = list(getattr(params, name) or ())
            if ids and max(ids) >= size:
                raise ConfigError.of(name, got=max(ids), expected=f"token ids in [0, {size})")
        self._processors.validate(params)
        rules, state = self.rules(params), self.start(params)
        if rules is not None or state is not None:
            (rules or TokenRules(size)).mask((), None if state is None else state.mask())

    def rules(self, params: SamplingParams) -> TokenRules | None:
        """Which tokens may be drawn beside what the grammar says; None for all.

        Raises:
            ConfigError: If bad words cannot be tokens, or are too many.
        """
        if params.allowed_token_ids is None and not params.bad_words and not params.min_tokens:
            return None
        return TokenRules(
            self._loaded.vocab_size,
            allowed=params.allowed_token_ids,
            banned_early=self._loaded.eos_token_ids | frozenset(params.stop_ids),
            min_tokens=params.min_tokens,
            bad_words=self._tokens_of(tuple(params.bad_words or ())),
        )

    def start(self, params: SamplingParams) -> GrammarState | None:
        """The grammar's state before the first token; None without a grammar. Raises as ``check``."""
        return None if params.structured_outputs is None else self._grammars.start(params.structured_outputs)

    # -- masks ahead --

    def prepare(self, states: Iterable[GrammarState]) -> None:
        """Begin to compute masks, on a thread beside the model's; those of equal states once."""
        missing = [state for state in dict.fromkeys(states) if not state.has_mask]
        if missing:
            if self._worker is None or self._worker[0] != os.getpid():  # a forked process has no thread
                self._worker = os.getpid(), ThreadPoolExecutor(1, "treeshare-masks")
            self._pending = self._worker[1].submit(_compute, missing)

    def wait(self) -> None:
        """Wait for what ``prepare`` began: then ``mask`` computes only what nobody could foresee."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def take_num_masks(self) -> int:
        """How many grammars' masks were computed since the last call."""
        return self._grammars.take_num_masks()

    # -- bad words --

    def _tokens_of(self, words: tuple[str, ...]) -> list[list[int]]:
        """The tokens of each word where a text begins, and after a space if those are as many others."""
        if words not in self._words:
            if len(self._words) >= _NUM_KEPT:
                self._words.clear()
            self._words[words] = self._tokenized(words)
        return self._words[words]

    def _tokenized(self, words: tuple[str, ...]) -> list[list[int]]:
        tokenizer = self._loaded.tokenizer
        if words and tokenizer is None:
            raise ConfigError.of("bad_words", got=words, expected="none: the model has no tokenizer")
        rows: list[list[int]] = []
        for word in words:
            bare = word.lstrip()
            first, second = (encode(tokenizer, lead + bare, special_tokens=False) for lead in ("", " "))
            if not first:
                raise ConfigError.of("bad_words", got=word, expected="words of at least one token")
            rows.append(first)
            if second and second[0] != first[0] and len(second) == len(first):
                rows.append(second)
        num_tokens = sum(map(len, rows))
        if len(rows) > MAX_BAD_WORDS or num_tokens > MAX_BAD_TOKENS:
            got = f"{len(rows)} spellings of {num_tokens} tokens"
            raise ConfigError.of(
                "bad_words",
                got=got,
                expected=f"at most {MAX_BAD_WORDS} tokenised words of {MAX_BAD_TOKENS} tokens in all",
            )
        largest = int(np.max([max(row) for row in rows])) if rows else 0
        if largest >= self._loaded.vocab_size:
            raise ConfigError.of("bad_words", got=f"token {largest}", expected="tokens that the model knows")
        return rows


def _compute(states: list[GrammarState]) -> None:
    for state in states:
        try:
            state.mask()
        except ConfigError:  # whoever needs the mask meets it again
            continue
