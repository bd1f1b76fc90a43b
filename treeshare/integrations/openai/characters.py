"""The maximum number of characters of a prompt; a longer one is rejected without being tokenised."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from treeshare.text import bytes_of_letters

COMPOSED = 4
"""Maximum number of characters that Unicode's normal forms make one of."""

_FACTORS = {
    "ByteLevel": 1, "Lowercase": 1, "NFC": COMPOSED, "NFD": 1, "NFKC": COMPOSED, "NFKD": 1, "Prepend": 1,
    "Strip": 1,
}  # fmt: skip
"""Normalisers that make one of a bounded number of characters, blanks at the ends apart."""

_PARTS = ("ByteLevel", "Digits", "FixedLength", "Metaspace", "Punctuation", "Split", "UnicodeScripts")
_BLANKLESS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
"""Pre-tokenisers that drop nothing, and those that drop blanks."""


_CONTINUATION = frozenset(range(0x80, 0xC0))
_UTF8 = frozenset(range(0xF5)) - {0xC0, 0xC1}
"""Bytes that continue a character, and all that occur in UTF-8."""


@dataclass(frozen=True, kw_only=True)
class CharacterLimit:
    """An upper bound of a text's length.

    Attributes:
        max_characters: The bound.
        uncounted: Characters that do not count: any number of them may become no token.
    """

    max_characters: int
    uncounted: str = ""

    def is_passed(self, text: str) -> bool:
        """Whether a text is longer."""
        size = len(text)
        return size > self.max_characters and (
            size - sum(map(text.count, self.uncounted)) > self.max_characters
        )

    @classmethod
    def of(cls, tokenizer: Any, num_tokens: int) -> CharacterLimit | None:  # noqa: ANN401
        """Of texts that may be ``num_tokens`` tokens: the longest token's length times the tokens.

        None for a tokenizer that may drop any character, or make one token of any number of them.

        Args:
            tokenizer: A model's, or None.
            num_tokens: Maximum number of tokens.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        rules = json.loads(backend.to_str())
        vocabulary = backend.get_vocab(with_added_tokens=True)
        normalisers, splits = _steps(rules.get("normalizer")), _steps(rules.get("pre_tokenizer"))
        factor = 1
        for step in normalisers:
            factor *= _factor(step)
        if not factor or not all(map(_drops_nothing, splits)):
            return None
        dropped = _dropped(rules["model"], vocabulary, {step["type"] for step in (*normalisers, *splits)})
        if dropped is None:
            return None
        if any(token.get("lstrip") or token.get("rstrip") for token in rules.get("added_tokens", ())) or any(
            step["type"] in (*_BLANKLESS, "Strip") for step in (*normalisers, *splits)
        ):
            dropped += _blanks()
        longest = max(map(len, vocabulary), default=1)
        uncounted = "".join(sorted(set(dropped)))
        return cls(max_characters=num_tokens * factor * longest, uncounted=uncounted)


def _steps(rule: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The single steps of a rule that may be a sequence."""
    if rule is None:
        return []
    if rule["type"] != "Sequence":
        return [rule]
    return [step for part in rule.get("pretokenizers", rule.get("normalizers", ())) for step in _steps(part)]


def _factor(step: dict[str, Any]) -> int:
    """How many characters a normaliser makes one of at most; 0 for any number."""
    if step["type"] == "Replace":
        pattern = step["pattern"].get("String")
        return int(pattern is not None and 0 < len(pattern) <= len(step["content"]))
    return _FACTORS.get(step["type"], 0)


def _drops_nothing(step: dict[str, Any]) -> bool:
    """Whether a pre-tokeniser drops at most blanks."""
    is_known = step["type"] in (*_PARTS, *_BLANKLESS)
    return is_known and step.get("behavior") != "Removed"


def _dropped(model: dict[str, Any], vocabulary: dict[str, int], steps: set[str]) -> str | None:
    """The characters of which a run may become a single token, or none; None if that may be most of them."""
    if model["type"] == "BPE" and "ByteLevel" in steps:
        known = {byte for letter, byte in bytes_of_letters().items() if letter in vocabulary}
        # Of a character beyond ASCII, at least its continuation bytes are part of a token.
        return (
            "".join(chr(byte) for byte in range(128) if byte not in known) if known >= _CONTINUATION else None
        )
    if model["type"] in ("BPE", "Unigram") and model.get("byte_fallback"):
        return "" if all(f"<0x{byte:02X}>" in vocabulary for byte in _UTF8) else None
    return None


def _blanks() -> str:
    """All characters that are blank: a walk through Unicode, so only where they are needed."""
    return "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))
