"""A text is refused by its length only where the tokenizer itself says that it is too many tokens."""

from __future__ import annotations

import unicodedata
from functools import cache

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.examples import examples
from treeshare.integrations.openai.characters import COMPOSED, CharacterLimit

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
LONGEST = "abababab"
MERGES = [("a", "b"), ("ab", "ab"), ("abab", "abab")]


def byte_level(missing="", **parts):
    words = [letter for letter in LETTERS if letter not in missing] + ["ab", "abab", LONGEST]
    model = models.BPE({word: i for i, word in enumerate(words)}, MERGES, unk_token=parts.pop("unk", None))
    return made(model, **{"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False)} | parts)


def byte_fallback(**parts):
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "▁", "ab", "abab", LONGEST]
    model = models.BPE(
        {word: i for i, word in enumerate(words)},
        MERGES,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    return made(model, normalizer=normalizers.Replace(" ", "▁"), **parts)


def made(model, normalizer=None, pre_tokenizer=None, added=()):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def sequence(module, *steps):
    return module.Sequence(list(steps))


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
BOUNDED = {
    "bytes": byte_level,
    "bytes, some missing and dropped": lambda: byte_level(missing=["!", "z", "Ā", "Ą", "ò"]),
    "bytes, missing ones unknown": lambda: byte_level(missing=["Ā", "Ą"], unk="b"),
    "composed": lambda: byte_level(normalizer=normalizers.NFC()),
    "composed by likeness, lower case": lambda: byte_level(
        normalizer=sequence(normalizers, normalizers.NFKC(), normalizers.Lowercase())
    ),
    "stripped": lambda: byte_level(normalizer=normalizers.Strip()),
    "split and digits": lambda: byte_level(
        pre_tokenizer=sequence(
            pre_tokenizers, pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.Digits(), BYTES
        )
    ),
    "blanks dropped": lambda: byte_level(
        pre_tokenizer=sequence(pre_tokenizers, pre_tokenizers.WhitespaceSplit(), BYTES)
    ),
    "a token that takes blanks": lambda: byte_level(added=[AddedToken("<e>", lstrip=True, rstrip=True)]),
    "fallback to bytes": byte_fallback,
}
WITHOUT_BOUND = {
    "words": lambda: made(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>"), None, pre_tokenizers.Whitespace()),
    "unknown ones fused": lambda: made(
        models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", fuse_unk=True)
    ),
    "unknown ones dropped": lambda: made(models.BPE({"a": 0}, [])),
    "bytes of most characters missing": lambda: byte_level(missing=["Ģ"]),
    "split and removed": lambda: byte_level(
        pre_tokenizer=sequence(pre_tokenizers, pre_tokenizers.Split("a", "removed"), BYTES)
    ),
    "accents dropped": lambda: byte_level(normalizer=normalizers.StripAccents()),
    "any pattern replaced": lambda: byte_level(normalizer=normalizers.Replace("aa", "a")),
    "pieces, unknown ones fused": lambda: made(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0)),
}
tokenizer_of = cache(lambda name: (BOUNDED | WITHOUT_BOUND)[name]())

WORDS = [
    "ab",
    LONGEST,
    " ",
    "  \n",
    "\0",
    "\x02",
    "é",
    "e\u0301",
    "\u03b1\u0313\u0300\u0345",
    "ﷺ",
    "ﬁ",
    "한",
    "😀",
    "<e>",
    "1",
    "İ",
]


@examples(100)
@given(
    name=st.sampled_from(sorted(BOUNDED)),
    parts=st.lists(st.tuples(st.sampled_from(WORDS) | st.text(max_size=3), st.integers(1, 40)), max_size=6),
)
@example(name="a token that takes blanks", parts=[("<e>", 1), (" ", 10_000)])
@example(name="bytes, some missing and dropped", parts=[("\0", 10_000)])
@example(name="composed", parts=[("\u03b1\u0313\u0300\u0345", 100)])
@example(name="stripped", parts=[("\u2003", 10_000), ("a", 1)])
def test_what_fits_is_never_refused(name, parts):
    tokenizer = tokenizer_of(name)
    text = "".join(word * count for word, count in parts)
    limit = CharacterLimit.of(tokenizer, len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert limit is not None
    assert not limit.is_passed(text)


@pytest.mark.parametrize("name", BOUNDED)
def test_what_is_far_too_long_is_refused(name):
    """No vaguer than the longest token and the normal forms make it."""
    limit = CharacterLimit.of(tokenizer_of(name), 100)
    assert limit.is_passed("x" * (100 * COMPOSED * len(LONGEST) + 1))


@pytest.mark.parametrize("name", WITHOUT_BOUND)
def test_where_characters_may_vanish_there_is_no_bound(name):
    assert CharacterLimit.of(tokenizer_of(name), 100) is None


def test_the_normal_forms():
    longest = max(len(unicodedata.normalize("NFD", chr(code))) for code in range(0x110000))
    assert longest == COMPOSED


def test_without_a_tokenizer():
    assert CharacterLimit.of(None, 100) is None
