"""Grammars by llguidance: which tokens may come next, by a state that is a function of grammar and tokens.

States of a grammar are a tree, as completions are: whoever has drawn the same tokens holds the same state, be
it of another prompt, and its mask is computed once. A state that nobody holds any more is gone; computed
again, from the same tokens, it is the same one.
"""

from __future__ import annotations

import json
import re
import threading
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from treeshare.errors import ConfigError, one_line
from treeshare.failures import error_line, is_failure
from treeshare.installation import how_to_add
from treeshare.sampling.masks import mask_of, num_words, unpacked

if TYPE_CHECKING:
    from collections.abc import Collection

    from treeshare.sampling.masks import Mask
    from treeshare.sampling.structured import StructuredOutputsParams

NUM_KEPT = 32
"""Grammars that are kept though no request uses them."""

_LIMITS = {"initial_lexer_fuel": 300_000, "max_lexer_states": 50_000, "verbose_errors": False}
"""Limits of llguidance, lower than its own: a hostile grammar takes about a second and 100 MB."""

WHITESPACE = r"\x20|\r?\n[\x20\t]{0,20}"
"""Space around JSON's punctuation where a request does not say: one, or a line's end and an indentation.

Where any space may stand, small models write nothing else.
"""

_PROBE = '{"a": [1, 2.5]}\n\t \u00e9\u20ac\U0001f600 b'
"""A text that a tokenizer keeps, or it is not used to cut text."""

_NOTHING = "NoExtension"
"""What the library's error holds where a grammar has no text."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords of a JSON schema whose values are schemas by name."""


class GrammarState:
    """Where a grammar is after some tokens; never changed.

    Args:
        compiler: Of the grammar.
        matcher: llguidance's, after these tokens.
    """

    __slots__ = ("__weakref__", "_children", "_compiler", "_lock", "_mask", "_matcher", "is_complete")

    def __init__(self, compiler: GrammarCompiler, matcher: Any) -> None:  # noqa: ANN401
        if matcher.is_error():
            raise ConfigError(f"structured_outputs: {_reason(matcher.get_error())}")
        self._compiler, self._matcher = compiler, matcher
        self._children: dict[int, weakref.ref[GrammarState]] = {}
        self._lock = threading.Lock()
        self._mask: Mask | None = None
        self.is_complete: bool = matcher.is_stopped()

    def advance(self, token: int) -> GrammarState:
        """The state after one more token.

        Raises:
            ConfigError: If the grammar does not allow it, or has become too large.
        """
        known = self._children.get(token)
        state = None if known is None else known()
        if state is None:
            matcher = self._matcher.deep_copy()
            matcher.consume_token(token)
            state = GrammarState(self._compiler, matcher)
            self._children[token] = weakref.ref(state)
        return state

    @property
    def has_mask(self) -> bool:
        """Whether ``mask`` need not compute."""
        return self._mask is not None

    def mask(self) -> Mask:
        """The tokens that may come next, end-of-sequence included where the text may end; computed once.

        Raises:
            ConfigError: If the grammar has become too large.
        """
        with self._lock:
            if self._mask is None:
                self._mask = self._compiler.mask_of_state(self._matcher)
            return self._mask


class GrammarCompiler:
    """Makes states of grammars for a model; from any thread.

    Args:
        tokenizer: The model's transformers tokenizer, or None.
        vocab_size: Token ids that the model knows, more or fewer than the tokenizer's.
        eos_token_ids: Tokens that may come where a text may end.
    """

    def __init__(self, tokenizer: Any | None, vocab_size: int, eos_token_ids: Collection[int]) -> None:  # noqa: ANN401
        self._source, self._vocab_size, self._eos = tokenizer, vocab_size, frozenset(eos_token_ids)
        self._lock, self._count_lock, self._reading = threading.Lock(), threading.Lock(), threading.Lock()
        self._kept: OrderedDict[StructuredOutputsParams, GrammarState] = OrderedDict()
        self._tokenizer: Any | None = None
        self._valid: Mask = mask_of(0, ())
        self._num_masks = 0

    def start(self, params: StructuredOutputsParams) -> GrammarState:
        """The state before the first token.

        Raises:
            ConfigError: If llguidance is missing or cannot read the model's tokenizer, or the grammar is
                broken, too large, or has no text that the model's tokens can spell.
        """
        with self._lock:
            state = self._kept.get(params)
            if state is not None:
                self._kept.move_to_end(params)
                return state
        state = self._compiled(params)  # whoever asks for another grammar does not wait for it
        with self._lock:
            state = self._kept.setdefault(params, state)
            while len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
            return state

    def take_num_masks(self) -> int:
        """How many masks were computed since the last call."""
        with self._count_lock:
            count, self._num_masks = self._num_masks, 0
            return count

    def mask_of_state(self, matcher: Any) -> Mask:  # noqa: ANN401
        """Compute a mask; see ``GrammarState.mask``."""
        assert self._tokenizer is not None
        words = np.zeros(num_words(self._tokenizer.vocab_size), np.uint32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if matcher.is_error():
            raise ConfigError(f"structured_outputs: {_reason(matcher.get_error())}")
        with self._count_lock:
            self._num_masks += 1
        return words[: len(self._valid)] & self._valid

    def _compiled(self, params: StructuredOutputsParams) -> GrammarState:
        kind = params.kind
        library = _llguidance()
        with self._reading:
            if self._tokenizer is None:
                self._read_tokenizer(library)
        try:
            text = _source(library, params)
            limits = library.LLParserLimits(**_LIMITS)
            matcher = library.LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
        except Exception as error:
            raise ConfigError(f"structured_outputs: {kind}: {_reason(str(error))}") from error
        warnings = matcher.get_grammar_warnings()
        if warnings:  # of keywords that a schema's own options let the library leave out
            raise ConfigError(f"structured_outputs: {kind}: {_reason(warnings[0])}")
        try:
            state = GrammarState(self, matcher)
            first = np.flatnonzero(unpacked(state.mask(), self._vocab_size)).tolist()
            for token in [token for token in first if token not in self._eos][:1]:
                state.advance(token).mask()  # limits are met here, not after a request's first token
        except ConfigError as error:
            if _NOTHING not in str(error):
                raise ConfigError(str(error).replace(":", f": {kind}:", 1)) from error
            first = []
        if not first:
            expected = "at least one text that the model's tokens can spell"
            raise ConfigError.of(f"structured_outputs: {kind}", got="none", expected=expected)
        return state

    def _read_tokenizer(self, library: Any) -> None:  # noqa: ANN401
        """Let the library read the tokenizer, which takes about half a second."""
        if self._source is None:
            raise ConfigError("structured_outputs: the model has no tokenizer; a grammar needs one")
        backend = getattr(self._source, "backend_tokenizer", None)
        if backend is None:
            kind = type(self._source).__name__
            raise ConfigError.of(
                "structured_outputs", got=f"a {kind}", expected="a tokenizer with tokenizer.json"
            )
        known = set(backend.get_vocab(with_added_tokens=True).values())
        size = max(known, default=0) + 1
        options = {"n_vocab": max(self._vocab_size, size) + 1, "eos_token": sorted(self._eos) or None}
        try:
            content = json.loads(backend.to_str())
            content["truncation"] = content["padding"] = None
            read = library.LLTokenizer(json.dumps(content), **options)
            is_faithful = read.decode_bytes(read.tokenize_str(_PROBE)) == _PROBE.encode()
            if not is_faithful or size > self._vocab_size:
                cutter = _GreedyTokenizer(read, min(size, self._vocab_size))
                options["eos_token"] = options["eos_token"] or [cutter.eos_token_id]
                read = cutter.read = library.LLTokenizer(library.TokenizerWrapper(cutter), **options)
        except BaseException as error:
            if not is_failure(error):
                raise
            reason = error_line(error)
            raise ConfigError(
                f"structured_outputs: llguidance cannot read the tokenizer: {reason}"
            ) from error
        foreign = set(read.eos_tokens) - self._eos  # ends that the model does not know
        self._valid = mask_of(self._vocab_size, (known | self._eos) - foreign)
        self._tokenizer = read


class _GreedyTokenizer:
    """Cuts text into its longest tokens.

    For a tokenizer that loses a part of texts, or has tokens that the model does not know: where a grammar
    forces text, the library lets only those tokens come that the tokenizer has for it.

    Args:
        read: The library's own reading of the tokenizer.
        size: Tokens that the model knows, too.

    Attributes:
        read: Whose tokens are taken.
    """

    bos_token_id: int | None = None

    def __init__(self, read: Any, size: int) -> None:  # noqa: ANN401
        self.read = read
        self.eos_token_id = size  # an end that is never drawn, for a model that knows none
        self.tokens: list[bytes] = [*(read.decode_bytes([token]) for token in range(size)), b"<|never|>"]
        self.special_token_ids = [*(token for token in range(size) if read.is_special_token(token)), size]

    def __call__(self, text: str) -> list[int]:
        tokens: list[int] = self.read.greedy_tokenize(text)
        return tokens


def _llguidance() -> Any:  # noqa: ANN401
    try:
        import llguidance
    except ImportError as error:
        remedy = how_to_add("structured")
        raise ConfigError(f"structured_outputs: llguidance is not installed; {remedy}") from error
    return llguidance


def _reason(text: str) -> str:
    """What the library says of an error, on a line, without its excerpts of the grammar."""
    whole = " ".join(text.replace("<non-verbose/>", "").split())
    reason = re.sub(r" 1 \| .*$", "", whole)
    reason = reason.rpartition(" error: ")[2]
    return one_line(reason or whole, 240)


def _source(library: Any, params: StructuredOutputsParams) -> str:  # noqa: ANN401
    """A grammar in the library's form."""
    if params.regex is not None:
        found: str = library.LLMatcher.grammar_from_regex(params.regex)
    elif params.choice is not None:
        texts = (json.dumps(text, ensure_ascii=False) for text in params.choice)
        found = library.LLMatcher.grammar_from_lark("start: " + " | ".join(texts))
    elif params.grammar is not None:
        found = library.grammar_from("grammar", params.grammar)
    else:
        schema = {"type": "object"} if params.json is None else json.loads(str(params.json))
        if params.disable_additional_properties:
            _close(schema)
        space = params.whitespace_pattern or WHITESPACE
        options: dict[str, Any] = {"whitespace_flexible": not params.disable_any_whitespace}
        if not params.disable_any_whitespace:
            options["whitespace_pattern"] = space
        found = library.LLMatcher.grammar_from_json_schema(schema, defaults=options)
    return found


def _close(schema: object) -> None:
    """Let objects whose schema lists properties have no others, unless it says so, in place."""
    if isinstance(schema, list):
        for part in schema:
            _close(part)
    if not isinstance(schema, dict):
        return
    for name, part in schema.items():
        if name in _MAPS and isinstance(part, dict):
            for inner in part.values():
                _close(inner)
        elif name not in ("enum", "const", "default", "examples"):
            _close(part)
    if "properties" in schema or "patternProperties" in schema:
        schema.setdefault("additionalProperties", False)
