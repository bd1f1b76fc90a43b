"""How many characters a prompt can have: a longer one is refused without being tokenised."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True, kw_only=True)
class CharacterLimit:
    """An upper bound of a text's length.

    Attributes:
        max_characters: The bound.
        counts_blanks: Whether blanks count; they do not where any number of them may become no token.
    """

    max_characters: int
    counts_blanks: bool = True

    def is_passed(self, text: str) -> bool:
        """Whether a text is longer."""
        if len(text) <= self.max_characters or self.counts_blanks:
            return len(text) > self.max_characters
        return sum(map(len, text.split())) > self.max_characters

    @classmethod
    def of(cls, tokenizer: Any, num_tokens: int) -> CharacterLimit | None:  # noqa: ANN401
        """Of texts that may be ``num_tokens`` tokens: the longest token's length times the tokens.

        None for a tokenizer that may drop characters, or make one token of any number of them.

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
        if not _knows_all(rules["model"], vocabulary, {step["type"] for step in (*normalisers, *splits)}):
            return None
        strips = any(token.get("lstrip") or token.get("rstrip") for token in rules.get("added_tokens", ()))
        strips |= any(step["type"] in (*_BLANKLESS, "Strip") for step in (*normalisers, *splits))
        longest = max(map(len, vocabulary), default=1)
        return cls(max_characters=num_tokens * factor * longest, counts_blanks=not strips)


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


def _knows_all(model: dict[str, Any], vocabulary: dict[str, int], steps: set[str]) -> bool:
    """Whether every character is spelled by tokens: a run of unknown ones may be a single token, or none."""
    if model["type"] == "BPE" and "ByteLevel" in steps:
        from tokenizers.pre_tokenizers import ByteLevel

        return all(letter in vocabulary for letter in ByteLevel.alphabet())
    if model["type"] in ("BPE", "Unigram") and model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    return False
