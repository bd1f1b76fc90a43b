"""Tiny tokenizers of every kind of decoder, with vocabularies that cut words, characters and spaces."""

from __future__ import annotations

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from treeshare.text import Detokenizer

BAR = "\u2581"
SPECIAL = ["<s>", "</s>", "<|end|>"]
ADDED = "<call>"
"""An added token that is not special."""

_PIECES = [BAR, BAR * 2, BAR + "a", BAR + "b", "a", "b", "ab", BAR + "abab", ".", BAR + "'", "s", "\u00e9"]
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _made(model, decoder, special=SPECIAL, **options):
    raw = Tokenizer(model)
    raw.decoder = decoder
    raw.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    raw.add_tokens([AddedToken(ADDED, special=False, normalized=False)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=special[1], **{"clean_up_tokenization_spaces": False} | options
    )


def _pieces(decoder, pieces=(*_PIECES, *_BYTES), **options):
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *pieces])}
    return _made(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True), decoder, **options)


def llama2():
    """Its first space goes, bytes stand in for characters."""
    strip = decoders.Strip(content=" ", left=1, right=0)
    parts = [decoders.Replace(BAR, " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    return _pieces(decoders.Sequence(parts))


def gemma():
    """Bytes stand in for characters, no space goes."""
    return _pieces(decoders.Sequence([decoders.Replace(BAR, " "), decoders.ByteFallback(), decoders.Fuse()]))


def metaspace(scheme):
    return _pieces(decoders.Metaspace(replacement=BAR, prepend_scheme=scheme), _PIECES)


def byte_level(special=SPECIAL):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [byte_letters(text) for text in (" a", "ab", "  ", " \u20ac", "\u00e9")]
    halves = [
        byte_letters(b" \xe2\x82"),
        byte_letters(b"\xac a"),
        byte_letters(b"\xf0\x9f"),
        byte_letters(b"\x98\x80"),
    ]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *words, *halves])}
    return _made(models.BPE(vocabulary, []), decoders.ByteLevel(), special)


def byte_letters(text):
    """How a byte-level vocabulary writes bytes."""
    from treeshare.text import bytes_of_letters

    letter_of = {byte: letter for letter, byte in bytes_of_letters().items()}
    return "".join(letter_of[byte] for byte in (text.encode() if isinstance(text, str) else text))


_WORDS = ["[UNK]", "a", "b", "##a", "##b", "it", "'", "s", "n", "t", ".", ",", "##ab", "not", "'s", "\u00e9"]


def word_piece(cleaned):
    vocabulary = {piece: i for i, piece in enumerate(_WORDS)}
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return _made(model, decoders.WordPiece(cleanup=False), clean_up_tokenization_spaces=cleaned)


def word_ends():
    """The end of a word is marked, as in the first GPT's vocabulary."""
    pieces = ["<unk>", "a</w>", "a", "b</w>", "b", ".</w>", "abab</w>", "\u00e9</w>"]
    model = models.BPE({piece: i for i, piece in enumerate(pieces)}, [], unk_token="<unk>")
    return _made(model, decoders.BPEDecoder(suffix="</w>"))


def cleaned_bytes():
    """Spaces are cleaned up though the words are cut into bytes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [byte_letters(text) for text in (" '", "s", " n't", " .", " ", "n't", "'", " '' ")]
    vocabulary = {piece: i for i, piece in enumerate([*letters, *(w for w in words if w not in letters)])}
    return _made(
        models.BPE(vocabulary, []),
        decoders.ByteLevel(),
        clean_up_tokenization_spaces=True,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True,
    )


KINDS = {
    "llama2": llama2(),
    "gemma": gemma(),
    "metaspace always": metaspace("always"),
    "metaspace first": metaspace("first"),
    "metaspace never": metaspace("never"),
    "byte level": byte_level(),
    "words": word_piece(cleaned=False),
    "words, cleaned": word_piece(cleaned=True),
    "word ends": word_ends(),
    "bytes, cleaned": cleaned_bytes(),
}
DETOKENIZERS = {name: Detokenizer(tokenizer) for name, tokenizer in KINDS.items()}


def ids_of(tokenizer, pieces):
    """Tokens by their names; text in quotes ``<...>`` as it stands."""
    ids = tokenizer.convert_tokens_to_ids(list(pieces))
    assert None not in ids, pieces
    return ids


def bytes_of(tokenizer, text):
    """The byte pieces of a text."""
    data = text.encode() if isinstance(text, str) else text
    return ids_of(tokenizer, [f"<0x{byte:02X}>" for byte in data])
