"""Pieces of text as tokens come: together they are the whole text, and no character comes in halves."""

from __future__ import annotations

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE

from tests.cli.text_model import byte_tokenizer
from treeshare.engine.streaming import TextStream


def bytes_beside_words():
    """A tokenizer that writes what it does not know as bytes, and a space as the word's first letter."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581a", "b", "\u2581"]
    vocabulary = {word: i for i, word in enumerate(words)}
    raw = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")


TOKENIZERS = {"bytes": byte_tokenizer(), "bytes beside words": bytes_beside_words()}


def ids_of(name, text):
    first = {"bytes": None, "bytes beside words": 1}[name]
    if first is None:
        return TOKENIZERS[name](text)["input_ids"]
    return [257, *(byte + first for byte in text.encode()), 259, 258]


def pieces(name, ids):
    decode = TOKENIZERS[name].decode
    stream = TextStream(decode)
    return [stream.push(ids[:end]) for end in range(1, len(ids) + 1)], decode(ids)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), min_size=1, max_size=20))
def test_whole_text(name, text):
    found, whole = pieces(name, ids_of(name, text))
    assert "".join(found) == whole
    assert "\ufffd" not in "".join(found)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(raw=st.binary(min_size=1, max_size=20))
def test_any_bytes(name, raw):
    """What is no text may be held back to the end, but nothing else comes instead."""
    ids = ids_of(name, "x" * len(raw))
    offset = 1 if name == "bytes beside words" else 0
    for place, byte in enumerate(raw, offset):
        ids[place] = byte + 1 if offset else TOKENIZERS[name].convert_tokens_to_ids(_letter(byte))
    found, whole = pieces(name, ids)
    if name == "bytes":
        assert whole.startswith("".join(found))


def _letter(byte):
    from treeshare.integrations.openai.reply import _bytes_of_letters

    return next(letter for letter, value in _bytes_of_letters().items() if value == byte)
