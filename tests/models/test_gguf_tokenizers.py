"""Tokenizers of GGUF files that list no merges: sentencepiece's pieces, each with a score."""

from __future__ import annotations

import itertools
import random

import gguf
import pytest

from tests.models.gguf_models import finish, make_writer, tensors_of, values_of
from tests.models.tiny import CONFIGS, make_model
from treeshare.models import describe_model

_SPACE = "\u2581"
_WORDS = ("the", "then", "hen", "in", "thin", "ing", _SPACE + "the", _SPACE + "in", "ne", "er", "here", "th")
_LETTERS = _SPACE + "theinrgs"


def pieces():
    """Tokens, their kinds and scores: control, bytes, letters, and words in the order of their merges."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [2, 3, 3] + [6] * 256
    parts = [*_LETTERS, *_prefixes()]
    scores = (
        [0.0] * len(tokens)
        + [-100.0] * len(_LETTERS)
        + [-float(i) for i in range(len(parts) - len(_LETTERS))]
    )
    return tokens + parts, kinds + [1] * len(parts), scores


def _prefixes():
    """Words and what they are merged from, each once, so that every piece can be reached."""
    found = {word[:length] for word in _WORDS for length in range(2, len(word) + 1)}
    return sorted(found, key=lambda word: (len(word), word))


def by_score(text, tokens, scores):
    """Of all neighbours that are a piece together, the best score first, then the leftmost."""
    known = {token: number for number, token in enumerate(tokens)}
    parts = list(_SPACE + text.replace(" ", _SPACE))
    while True:
        pairs = [
            (-scores[known[a + b]], place)
            for place, (a, b) in enumerate(itertools.pairwise(parts))
            if a + b in known
        ]
        if not pairs:
            break
        place = min(pairs)[1]
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return [
        number
        for part in parts
        for number in ([known[part]] if part in known else [3 + byte for byte in part.encode()])
    ]


@pytest.fixture(scope="module")
def described(tmp_path_factory):
    """A model of such a file."""
    folder = tmp_path_factory.mktemp("file")
    tokens, kinds, scores = pieces()
    config = CONFIGS["llama"]()
    config.vocab_size = len(tokens)
    writer = make_writer(folder / "x.gguf", "llama", values_of(config))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    finish(writer, tensors_of(make_model(config), "llama"), gguf.GGMLQuantizationType.Q8_0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield describe_model(folder / "x.gguf")


def test_pieces_by_score(described):
    tokens, _, scores = pieces()
    draws = random.Random(4)
    texts = ["the thing in here", "then", "\u00e9 in \u4e2d"]
    texts += ["".join(draws.choices("thein rgs", k=24)).strip() for _ in range(60)]
    for text in texts:
        if text and "  " not in text:
            assert described.encode(text) == [1, *by_score(text, tokens, scores)], text


def test_text_comes_back(described):
    for text in ("the thing in here", "\u00e9 in \u4e2d", "then"):
        assert described.decode(described.encode(text)[1:]).strip() == text
