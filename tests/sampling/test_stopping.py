"""Where a completion ends, against brute force over the whole text after every token."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.examples import examples
from treeshare.sampling import Ending, SamplingParams, StopChecker
from treeshare.text import Continuation, Detokenizer

EOS = 0
"""Token 0 of every toy tokenizer ends a completion; it has no text."""


class Toy:
    """A tokenizer that is its decoding; the first token ends a completion."""

    added_tokens_decoder: ClassVar[dict] = {}
    all_special_ids: ClassVar[list] = []

    def __init__(self, decode, vocabulary=()):
        self._decode = decode
        names = {bytes([byte]): f"<0x{byte:02X}>" for byte in range(256)}
        self._names = {i: names.get(piece, "") for i, piece in enumerate(vocabulary)}

    def decode(self, ids, skip_special_tokens=False):
        return self._decode(ids)

    def encode(self, text, add_special_tokens=True):
        return []

    def convert_ids_to_tokens(self, token):
        return self._names.get(token, "")

    def convert_tokens_to_ids(self, names):
        return list(map({name: i for i, name in self._names.items()}.get, names))


def continuation(decode, counted=None):
    """Of a prompt without text: then a completion's text is what decoding makes of it."""
    pieces = getattr(decode, "vocabulary", ())
    return Continuation(Detokenizer(Toy(counted or decode, pieces)), [], skip_special_tokens=True)


def byte_level(vocabulary):
    """Tokens are byte strings, cut anywhere."""
    return lambda ids: b"".join(vocabulary[i] for i in ids).decode("utf-8", "replace")


def sentencepiece(vocabulary):
    """Tokens are strings, a low line for a space; a space at the beginning is dropped."""
    return lambda ids: "".join(vocabulary[i] for i in ids).replace("▁", " ").removeprefix(" ")


def byte_fallback(vocabulary):
    """A run of single bytes is text if all of it is whole characters, else one mark for each byte."""

    def decode(ids):
        text, run = "", b""
        for piece in [*(vocabulary[i] for i in ids), ""]:
            if isinstance(piece, bytes):
                run += piece
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += "\ufffd" * len(run)
            text, run = text + piece, b""
        return text

    decode.vocabulary = vocabulary
    return decode


def brute_force(token_ids, params, decode, max_tokens, eos=frozenset({EOS})):
    """The ending and its number of tokens, by the definition."""
    texts = [decode(token_ids[:count]) for count in range(len(token_ids) + 1)]

    def first_seen(place, stop):
        return next(count for count, text in enumerate(texts) if text.startswith(stop, place))

    for count in range(1, len(token_ids) + 1):
        token, text, reason = token_ids[count - 1], texts[count], None
        is_eos = token in eos and not params.ignore_eos
        ends = count > params.min_tokens and (is_eos or token in params.stop_ids)
        if ends:
            text = text if params.include_stop_str_in_output else texts[count - 1]
            reason = None if is_eos else token
        found = [
            (place, stop)
            for stop in params.stop_strings
            for place in range(len(text))
            if text.startswith(stop, place) and first_seen(place, stop) > params.min_tokens
        ]
        if found and count > params.min_tokens:
            place, stop = min(found)
            end = place + len(stop) * params.include_stop_str_in_output
            return count, Ending("stop", stop, text[:end])
        if ends or count >= max_tokens:
            return count, Ending("stop" if ends else "length", reason, text)
    return len(token_ids), None


def make_checker(params, decode, max_tokens=10**9, eos=frozenset({EOS})):
    text = decode if decode is None or isinstance(decode, Continuation) else continuation(decode)
    return StopChecker(params, max_tokens=max_tokens, eos_token_ids=eos, continuation=text)


def check(token_ids, params, decode, max_tokens=10**9):
    """The ending and its number of tokens, by the checker."""
    checker = make_checker(params, decode, max_tokens)
    for count in range(1, len(token_ids) + 1):
        ending = checker.check(token_ids[:count])
        if ending is not None:
            return count, ending
    return len(token_ids), None


TEXT = st.text(alphabet="ab é€😀\ufffd", min_size=1, max_size=6)
PIECES = st.lists(TEXT.map(str.encode) | st.binary(max_size=3), min_size=1, max_size=6)


@st.composite
def byte_tokens(draw):
    """A vocabulary of byte strings that cut characters, and tokens that mostly spell text with it."""
    text = draw(st.text(alphabet="ab é€😀", max_size=40)).encode()
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=30)))
    spelled = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    vocabulary = [b"", *dict.fromkeys([*spelled, *draw(PIECES)])]
    ids = [vocabulary.index(piece, 1) for piece in spelled]
    noise = draw(
        st.lists(st.tuples(st.integers(0, len(ids)), st.integers(0, len(vocabulary) - 1)), max_size=4)
    )
    for place, token in noise:
        ids.insert(place, token)
    return vocabulary, ids


@st.composite
def settings_of_stops(draw, alphabet="ab é€😀\ufffd"):
    max_tokens = draw(st.integers(1, 40))
    return SamplingParams(
        stop=draw(st.lists(st.text(alphabet=alphabet, min_size=1, max_size=5), max_size=3)),
        stop_token_ids=draw(st.lists(st.integers(0, 8), max_size=2)),
        ignore_eos=draw(st.booleans()),
        include_stop_str_in_output=draw(st.booleans()),
        max_tokens=max_tokens,
        min_tokens=draw(st.just(0) | st.integers(0, max_tokens)),
    )


@examples(600)
@given(byte_tokens(), settings_of_stops(), st.integers(1, 40))
@example(([b"", b"aSTOP\xe2", b"\xff"], [1, 2, 2]), SamplingParams(stop="STOP"), 16)
@example(([b"", b"a\xe2", b"\x82\xac"], [1, 2]), SamplingParams(stop="\u20ac", min_tokens=2), 16)
@example(([b"", b"abc", b"a"], [1, 2, 1]), SamplingParams(stop=["ca", "bc"], min_tokens=2), 16)
def test_equals_brute_force(tokens, params, max_tokens):
    vocabulary, ids = tokens
    decode, max_tokens = byte_level(vocabulary), min(max_tokens, params.max_tokens)
    assert check(ids, params, decode, max_tokens) == brute_force(ids, params, decode, max_tokens)


@examples(300)
@given(
    st.lists(st.sampled_from(["▁", "▁a", "▁b", "a", "b", "▁ab", "", "é", "▁▁", "aab"]), max_size=60),
    settings_of_stops(alphabet="ab é"),
)
def test_a_leading_space_is_dropped(pieces, params):
    vocabulary = ["", *dict.fromkeys(pieces)]
    ids, decode = [vocabulary.index(piece) for piece in pieces], sentencepiece(vocabulary)
    assert check(ids, params, decode) == brute_force(ids, params, decode, 10**9)


@examples(300)
@given(
    st.lists(st.text(alphabet="ab€😀", max_size=12) | st.binary(max_size=2), max_size=12),
    st.lists(st.text(alphabet="ab€😀", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_bytes_stand_in_for_characters(parts, stops):
    pieces = []
    for part in parts:
        single = part if isinstance(part, bytes) else part.encode()
        pieces += [chr(byte) if byte == ord("a") else bytes([byte]) for byte in single]
    vocabulary = ["", *dict.fromkeys(pieces)]
    ids, decode = [vocabulary.index(piece) for piece in pieces], byte_fallback(vocabulary)
    params = SamplingParams(stop=stops, max_tokens=1000)
    assert check(ids, params, decode) == brute_force(ids, params, decode, 10**9)


@pytest.mark.parametrize("num_lead", range(30, 40))
def test_a_window_begins_at_a_whole_character(num_lead):
    """A run of bytes that begins inside a character would be no text at all."""
    pieces = [bytes([byte]) for byte in ("😀" * num_lead + "€").encode()]
    vocabulary = ["", *dict.fromkeys(pieces)]
    ids, decode = [vocabulary.index(piece) for piece in pieces], byte_fallback(vocabulary)
    expected = (len(ids), Ending("stop", "😀€", "😀" * (num_lead - 1)))
    assert check(ids, SamplingParams(stop="😀€", max_tokens=1000), decode) == expected


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 5])
@pytest.mark.parametrize("lead", ["", "x" * 100, "€" * 40, "😀" * 40], ids=["none", "one", "three", "four"])
def test_across_token_borders(lead, num_bytes):
    """The same text, cut anywhere: the ending comes with the token that holds the last byte of the stop."""
    stop, text = "€nd\n😀", (lead + "ab€nd\n😀cd").encode()
    vocabulary = [b"", *(text[i : i + num_bytes] for i in range(0, len(text), num_bytes))]
    ids = list(range(1, len(vocabulary)))
    params = SamplingParams(stop=stop, max_tokens=1000)
    end = len((lead + "ab" + stop).encode())
    expected = (-(-end // num_bytes), Ending("stop", stop, lead + "ab"))
    assert check(ids, params, byte_level(vocabulary)) == expected


WORDS = [b"", b"one", b" two", b" three", b"."]


@pytest.mark.parametrize("include", [False, True])
def test_end_of_sequence_and_stop_tokens(include):
    decode = byte_level([b"</s>", *WORDS[1:]])
    params = SamplingParams(stop_token_ids=[3], include_stop_str_in_output=include)
    assert check([1, 2, 0], params, decode) == (3, Ending("stop", None, "one two" + "</s>" * include))
    assert check([1, 2, 3], params, decode) == (3, Ending("stop", 3, "one two" + " three" * include))
    assert check([0], params, decode) == (1, Ending("stop", None, "</s>" * include))


def test_ignore_eos():
    decode = byte_level(WORDS)
    assert check([1, 0, 2], SamplingParams(ignore_eos=True), decode) == (3, None)
    asked = SamplingParams(ignore_eos=True, stop_token_ids=[EOS])
    assert check([1, 0, 2], asked, decode) == (2, Ending("stop", EOS, "one"))
    both = SamplingParams(stop_token_ids=[EOS])
    assert check([1, 0, 2], both, decode) == (2, Ending("stop", None, "one"))


def test_lengths():
    decode = byte_level(WORDS)
    assert check([1, 2, 3], SamplingParams(), decode, max_tokens=2) == (2, Ending("length", None, "one two"))
    assert check([1, 0], SamplingParams(), decode, max_tokens=2) == (2, Ending("stop", None, "one"))
    last = SamplingParams(stop="two")
    assert check([1, 2], last, decode, max_tokens=2) == (2, Ending("stop", "two", "one "))


def test_min_tokens():
    decode = byte_level(WORDS)
    params = SamplingParams(min_tokens=2, stop=["two"], stop_token_ids=[4])
    assert check([1, 2, 3, 1], params, decode) == (4, None)
    assert check([1, 2, 2], params, decode) == (3, Ending("stop", "two", "one two "))
    assert check([4, 0, 4], params, decode) == (3, Ending("stop", 4, "."))
    straddles = SamplingParams(min_tokens=2, stop="o th")
    assert check([1, 2, 3], straddles, decode) == (3, Ending("stop", "o th", "one tw"))
    cut_short = SamplingParams(min_tokens=9, stop="two")
    assert check([1, 2], cut_short, decode, max_tokens=2) == (2, Ending("length", None, "one two"))


@pytest.mark.parametrize(("include", "text"), [(False, "one"), (True, "one two")])
def test_stop_string_in_the_output(include, text):
    params = SamplingParams(stop=" two", include_stop_str_in_output=include)
    assert check([1, 2, 3], params, byte_level(WORDS)) == (2, Ending("stop", " two", text))


def test_the_earliest_of_several():
    decode = byte_level([b"", b"x abcd"])
    assert check([1], SamplingParams(stop=["d", "bc", "c"]), decode)[1] == Ending("stop", "bc", "x a")
    assert check([1], SamplingParams(stop=["abc", "ab"]), decode)[1] == Ending("stop", "ab", "x ")


def test_a_criterion_ends_it_too():
    params = SamplingParams(min_tokens=2, max_tokens=9)
    text = continuation(byte_level(WORDS))
    checker = StopChecker(
        params, max_tokens=9, eos_token_ids=frozenset(), continuation=text, criterion=lambda ids: ids[-1] == 1
    )
    assert checker.check([1]) is None
    assert checker.check([1, 2]) is None
    assert checker.check([1, 2, 1]) == Ending("stop", None, "one twoone")


def test_incomplete_at_the_end():
    decode = byte_level([b"", b"ab", b"\xf0\x9f", b"\x98\x80"])
    params = SamplingParams(stop="\N{GRINNING FACE}")
    assert check([1, 2], params, decode, max_tokens=2) == (2, Ending("length", None, "ab\ufffd"))
    assert check([1, 2, 3], params, decode) == (3, Ending("stop", "\N{GRINNING FACE}", "ab"))


@given(byte_tokens(), byte_tokens(), settings_of_stops(), st.integers(0, 20))
def test_forks_are_independent(tokens, others, params, num_shared):
    vocabulary, ids = tokens
    theirs = [1 + token % (len(vocabulary) - 1) for token in others[1]]
    decode = byte_level(vocabulary)
    checker = make_checker(params, decode)
    num_shared = min(num_shared, len(ids))
    for count in range(1, num_shared + 1):
        if checker.check(ids[:count]) is not None:
            return
    branches = {"own": (checker, ids), "fork": (checker.fork(), ids[:num_shared] + theirs)}
    endings = dict.fromkeys(branches)
    for count in range(num_shared + 1, 80):
        for name, (branch, branch_ids) in branches.items():
            if endings[name] is None and count <= len(branch_ids):
                ending = branch.check(branch_ids[:count])
                endings[name] = (count, ending) if ending is not None else None
    for name, (_, branch_ids) in branches.items():
        expected = brute_force(branch_ids, params, decode, 10**9)
        assert endings[name] == (expected if expected[1] is not None else None)


def test_a_fork_keeps_its_own_place():
    vocabulary = [b"", *(bytes([byte]) for byte in range(97, 123))]
    ids, decode = [1 + i % 20 for i in range(120)], byte_level(vocabulary)
    checker = make_checker(SamplingParams(stop=["xyz", "tyz"], max_tokens=1000), decode)
    assert all(checker.check(ids[:count]) is None for count in range(1, 41))
    fork = checker.fork()
    assert all(checker.check(ids[:count]) is None for count in range(41, 121))
    theirs = [*ids[:40], 25, 26]
    assert fork.check(theirs[:41]) is None
    assert fork.check(theirs) == Ending("stop", "tyz", decode(ids[:39]))
    assert checker.check([*ids, 1]) is None


class Counted:
    """A decoder that counts its calls and the tokens it was given."""

    def __init__(self, decode):
        self.decode, self.num_calls, self.num_tokens = decode, 0, 0

    def __call__(self, ids):
        self.num_calls += 1
        self.num_tokens += len(ids)
        return self.decode(ids)


def test_nothing_is_decoded_without_stop_strings():
    decode = Counted(byte_level(WORDS))
    params = SamplingParams(max_tokens=500, stop_token_ids=[4], min_tokens=3)
    assert check([1, 2, 3] * 200, params, decode, 500)[1].finish_reason == "length"
    assert decode.num_calls == 2  # the prompt, which is empty, and the whole
    assert check([1, 2, 3], params, None, 2) == (2, Ending("length", None, ""))


def test_few_tokens_are_decoded():
    """Work grows with the length of the text, not with its square."""
    num_tokens = 2000
    decode = Counted(byte_level([b"", b"x", "€".encode(), b"\xe2", b"\x82", b"\xac"]))
    params = SamplingParams(stop=["never", "xy"], max_tokens=num_tokens + 1)
    assert check([1, 2, 3, 4, 5] * (num_tokens // 5), params, decode) == (num_tokens, None)
    window = 2 * 3 * (5 + 8 + 1)  # twice the overlap of 5 + 8 characters, each at most 3 tokens
    assert decode.num_tokens <= num_tokens * window
    assert decode.num_calls <= 2 * num_tokens


def test_stop_strings_need_a_tokenizer():
    with pytest.raises(AssertionError, match="stop strings need a tokenizer"):
        make_checker(SamplingParams(stop="a"), None)


PROSE = (
    "def middle(items):\n    return items[len(items) // 2]\n\n\nprint('naïve café — 中文字符, 日本語 😀🎉')\n"
    "# Ελληνικά и кириллица\n\tif x == '…':  # end\n    pass\n\nQuestion: how many?\nAnswer: 42\n\n"
)


@pytest.fixture(scope="module")
def smollm2():
    from treeshare.models import load_model

    return load_model("smollm2-135m")


@pytest.mark.slow
@pytest.mark.parametrize("skip_special_tokens", [True, False])
def test_a_real_tokenizer(smollm2, skip_special_tokens):
    decode = smollm2.decoder(skip_special_tokens=skip_special_tokens)
    generator = random.Random(5)
    num_stopped = 0
    for _ in range(150):
        ids = [t for _ in range(2) for t in smollm2.tokenizer(PROSE)["input_ids"]]
        start = generator.randrange(len(ids) // 2)
        ids = ids[start : start + 60]
        for _ in range(generator.choice([0, 0, 3])):
            ids.insert(generator.randrange(len(ids)), generator.randrange(smollm2.vocab_size))
        text = decode(ids)
        at = [generator.randrange(len(text)) for _ in range(2)]
        stops = [text[i : i + generator.randint(1, 9)] for i in at] + ["never there"]
        params = SamplingParams(
            stop=[stop for stop in stops if stop],
            max_tokens=100,
            min_tokens=generator.choice([0, 0, 25]),
            include_stop_str_in_output=generator.random() < 0.5,
        )
        expected = brute_force(ids, params, decode, 60, smollm2.eos_token_ids)
        checker = make_checker(params, decode, 60, smollm2.eos_token_ids)
        endings = (checker.check(ids[:count]) for count in range(1, len(ids) + 1))
        got = next((i for i in enumerate(endings, start=1) if i[1] is not None), (len(ids), None))
        assert got == expected
        num_stopped += got[1] is not None and got[1].stop_reason is not None
    assert num_stopped > 75
