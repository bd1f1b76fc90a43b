"""The text of tokens, as a model's own tokenizer decodes them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from treeshare.errors import ConfigError
from treeshare.text.encoding import encode
from treeshare.text.reasoning import PARSERS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

INCOMPLETE = "\ufffd"
"""What decoders write for bytes that are no whole character (yet)."""

MARKS = frozenset(tag for tags in PARSERS.values() for tag in (tags.start, tags.end)) | {"[TOOL_CALLS]"}
"""Tags that tell a reply's parts; where they are special tokens, texts keep them."""

_NUM_REWRITTEN = 20
"""Characters before the end of a text that later tokens can still change where spaces are cleaned up.

The library replaces ten patterns, one after the other. Each reaches back by its length less one: 19 together.
"""

_NUM_KEPT = 1000
"""Lists of stop strings of which is kept which tokens they hold."""

_CLEANED_UP = "a . b ? c ! d , e ' f n't g 'm h 's i 've j 're k"
"""A text with everything that the library's cleaning up changes."""


def less(whole: str, head: str) -> str:
    """``whole`` without ``head``, or else without the beginning that both have in common."""
    return whole[len_common(whole, head) :]


def len_common(whole: str, head: str) -> int:
    """How many characters two texts have in common at their beginnings."""
    if whole.startswith(head):
        return len(head)
    pairs = zip(whole, head, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(whole), len(head)))


class Detokenizer:
    """How a tokenizer turns tokens into text.

    A token's text depends on what stands before it: many decoders drop the first space of whatever they
    decode, join the parts of a word, or need several tokens for a character. So only whole texts are decoded,
    and a part is the difference of two.

    Args:
        tokenizer: A transformers tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._token_texts: dict[tuple[int, bool], str] = {}
        self._hidden: dict[tuple[tuple[str, ...], bool], dict[int, str]] = {}

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens that nothing stands before."""
        if skip_special_tokens and self._marks:
            token_ids = [
                token for token in token_ids if token in self._marks or token not in self.special_ids
            ]
            skip_special_tokens = False
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        return text

    @cached_property
    def _marks(self) -> frozenset[int]:
        """Special tokens that are never left out: without them nobody could tell a reply's parts."""
        named = self._spellings.items()
        return frozenset(token for token, text in named if text in MARKS and self._added[token].special)

    @cached_property
    def _added(self) -> Mapping[int, Any]:
        added: Mapping[int, Any] = self._tokenizer.added_tokens_decoder
        return added

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Tokens that ``skip_special_tokens`` leaves out."""
        named = {token for token, added in self._added.items() if added.special}
        named.update(self._tokenizer.all_special_ids)
        left_out = {t for t in named if not self._tokenizer.decode([t], skip_special_tokens=True)}
        return frozenset(left_out - self._marks)

    @cached_property
    def byte_pieces(self) -> Mapping[int, int]:
        """The byte of each token that stands for one; a run of them is text only if all of it is UTF-8."""
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        ids = self._tokenizer.convert_tokens_to_ids(names)
        pieces = {token: byte for byte, token in enumerate(ids) if self._is_named(token, names[byte])}
        shown = {self.decode([token], skip_special_tokens=False) for token in pieces}
        return {} if shown & set(names) else pieces  # else they are plain text to this decoder

    def _is_named(self, token: int | None, name: str) -> bool:
        return token is not None and self._tokenizer.convert_ids_to_tokens(token) == name

    @cached_property
    def num_rewritten(self) -> int:
        """How many characters before the end of a text later tokens can change, beside incomplete ones."""
        if not getattr(self._tokenizer, "clean_up_tokenization_spaces", False):
            return 0
        try:
            ids = encode(self._tokenizer, _CLEANED_UP, special_tokens=False)
        except ConfigError:  # it has no tokens for this text
            return _NUM_REWRITTEN
        plain = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        is_shown = self._tokenizer.clean_up_tokenization(plain) != plain
        return 0 if is_shown and self._tokenizer.decode(ids) == plain else _NUM_REWRITTEN

    def unseen(self, *, skip_special_tokens: bool) -> Mapping[int, bool]:
        """By token, whether the decoder never sees it: it is left out, or not in the vocabulary."""
        return self._unseen[skip_special_tokens]

    @cached_property
    def _unseen(self) -> dict[bool, _Unseen]:
        return {
            True: _Unseen(self._tokenizer, self.special_ids),
            False: _Unseen(self._tokenizer, frozenset()),
        }

    @cached_property
    def _probe(self) -> list[int]:
        """Tokens of an ordinary text, to decode others after."""
        for text in ("a", "A", "1", "."):
            try:
                ids = encode(self._tokenizer, text, special_tokens=False)
            except ConfigError:  # it has no tokens for this text
                continue
            shown = self.decode(ids, skip_special_tokens=False)
            if shown.strip() and INCOMPLETE not in shown and ids[-1] not in self.byte_pieces:
                return ids
        return []

    def token_text(self, token: int, *, begins: bool = False) -> str:
        """What a single token adds to a text, special tokens included.

        Args:
            token: The token.
            begins: Whether nothing stands before it.
        """
        if (token, begins) not in self._token_texts:
            probe = [] if begins else self._probe
            whole = self.decode([*probe, token], skip_special_tokens=False)
            self._token_texts[token, begins] = less(whole, self.decode(probe, skip_special_tokens=False))
        return self._token_texts[token, begins]

    def hidden_in(self, texts: tuple[str, ...], *, skip_special_tokens: bool) -> dict[int, str]:
        """Added tokens whose own spelling is in one of ``texts``, but not in what they decode to.

        Special tokens that are left out, and those whose letters the decoder takes for something else.
        """
        key = texts, skip_special_tokens
        if key not in self._hidden:
            if len(self._hidden) >= _NUM_KEPT:
                self._hidden.clear()
            self._hidden[key] = {
                token: spelling
                for token, spelling in self._spellings.items()
                if any(spelling in text for text in texts)
                and (self._unseen[skip_special_tokens][token] or self.token_text(token) != spelling)
            }
        return self._hidden[key]

    @cached_property
    def _spellings(self) -> dict[int, str]:
        """Of each added token."""
        spellings = {token: str(getattr(added, "content", added)) for token, added in self._added.items()}
        return {token: spelling for token, spelling in spellings.items() if spelling}


class _Unseen(dict[int, bool]):
    """Whether a decoder never sees a token; filled as tokens are asked for."""

    def __init__(self, tokenizer: Any, left_out: frozenset[int]) -> None:  # noqa: ANN401
        super().__init__((token, True) for token in left_out)
        self._tokenizer = tokenizer

    def __missing__(self, token: int) -> bool:
        self[token] = is_unseen = self._tokenizer.convert_ids_to_tokens(token) is None
        return is_unseen
