"""A completion's text is that of prompt and completion together, less the prompt's; at every token."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests.examples import examples
from tests.text.kinds import ADDED, BAR, DETOKENIZERS, KINDS, byte_letters, bytes_of, ids_of
from treeshare.text import Continuation, GrowingText, offsets

UNKNOWN = 10**6
"""A row of the model's embedding for which the tokenizer has no token."""


def continuation(name, prompt, skip=True):
    return Continuation(DETOKENIZERS[name], prompt, skip_special_tokens=skip)


def by_definition(name, prompt, ids, skip):
    """The text, and whether the completion leaves the prompt's as it is."""
    decode = lambda tokens: KINDS[name].decode(tokens, skip_special_tokens=skip)  # noqa: E731
    whole, head = decode([*prompt, *ids]), decode(prompt)
    return whole[len(head) :], whole.startswith(head)


def tokens(name, max_size):
    """Any tokens; runs of one, and of bytes that are characters, are as likely as all others."""
    size = len(KINDS[name])
    some = st.lists(st.integers(0, size - 1) | st.just(UNKNOWN), max_size=4)
    same = st.tuples(st.integers(0, size - 1), st.integers(1, 40)).map(lambda pair: [pair[0]] * pair[1])
    last = st.lists(st.integers(size - 12, size - 1), max_size=4)
    kinds = [some, same, last]
    if DETOKENIZERS[name].byte_pieces:
        kinds.append(st.text("a\u20ac\U0001f600\n", max_size=3).map(lambda text: bytes_of(KINDS[name], text)))
    return st.lists(st.one_of(kinds), max_size=8).map(
        lambda parts: [token for part in parts for token in part][:max_size]
    )


def parts(text, size):
    """What a stop string of some size could be."""
    return {text[i : i + size] for i in range(len(text) - size + 1)} if size else set()


CASES = st.sampled_from(sorted(KINDS)).flatmap(
    lambda name: st.tuples(st.just(name), tokens(name, 40), tokens(name, 90), st.booleans())
)


@examples(60)
@given(CASES)
def test_the_definition(case):
    name, prompt, ids, skip = case
    text, is_continued = by_definition(name, prompt, ids, skip)
    assume(is_continued)
    assert continuation(name, prompt, skip).text(ids) == text


@examples(25)
@given(CASES, st.integers(0, 12))
@example(("llama2", [1], [1] * 60 + [UNKNOWN] * 200, True), 3)
@example(("gemma", [13], [UNKNOWN], False), 0)
def test_every_token(case, num_lookback):
    """After each token: the text's length, its end, and what is certain of it until the last token."""
    name, prompt, ids, skip = case
    made = continuation(name, prompt, skip)
    texts = [made.text(ids[:count]) for count in range(len(ids) + 1)]
    growing, pieces, taken, seen = GrowingText(made, num_lookback), [], 0, set()
    places = offsets(made, ids)
    for count, token in enumerate(ids):
        assert places[count] == growing.num_certain
        fork = growing.fork()
        for other in (0, token, 3):
            fork.push(other)
        growing.push(token)
        text = texts[count + 1]
        assert growing.num_chars == len(text)
        assert text.endswith(growing.recent) or growing.recent.endswith("\ufffd")
        new = parts(text, num_lookback) - seen
        assert all(part in growing.recent for part in new)
        seen |= new
        assert all(later.startswith(text[: growing.num_certain]) for later in texts[count + 1 :])
        assert growing.certain_start <= taken
        pieces.append(growing.certain[taken - growing.certain_start :])
        taken = growing.num_certain
    assert texts[-1].startswith("".join(pieces))
    assert len("".join(pieces)) == growing.num_certain


EURO, FACE = "\u20ac", "\U0001f600"


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "text"),
    [
        ("llama2", [BAR + "a"], [BAR + "b"], " b"),
        ("llama2", [BAR + "a"], [BAR * 2, "b"], "  b"),
        ("llama2", ["<s>"], [BAR + "b"], "b"),  # it begins the text
        ("llama2", ["<s>", BAR + "a", "<|end|>", "<|end|>"], [BAR + "b"], " b"),
        ("llama2", ["a", *["<|end|>"] * 50], ["<|end|>", BAR + "b", "<s>", BAR + "a"], " b a"),
        ("llama2", [BAR], [BAR + "b"], " b"),  # the prompt's own space is the one that goes
        ("llama2", ["a", EURO], [BAR + "b"], " b"),
        ("llama2", [EURO], [BAR + "b"], " b"),
        ("llama2", ["a", b"\xe2"], [b"\x82\xac", "b"], "\u20acb"),  # whole now: the completion's
        ("llama2", ["a", b"\xf0\x9f"], [b"\x98\x80", FACE], FACE * 2),
        ("llama2", ["a", FACE, b"\xf0\x9f"], [b"\x98", "b"], "\ufffdb"),  # none of the prompt's bytes again
        ("llama2", ["a", FACE], [b"\xf0\x9f"], "\ufffd\ufffd"),  # nor may it break the prompt's character
        ("llama2", [FACE], [b"\x20", "b"], " b"),
        ("gemma", [BAR + "a"], [BAR + "b"], " b"),
        ("gemma", ["a", b"\xe2\x82"], [b"\xac", "b"], "\u20acb"),
        ("metaspace always", [BAR + "a"], [BAR + "b"], " b"),
        ("metaspace first", [BAR + "a"], [BAR + "b"], " b"),
        ("metaspace first", ["<s>"], [BAR + "b"], "b"),
        ("metaspace never", ["<s>"], [BAR + "b"], " b"),
        ("byte level", ["a", b" \xe2\x82"], [b"\xac a"], "\u20ac a"),
        ("byte level", ["a", b" \xe2\x82"], ["a"], "a"),
        ("words", ["it"], ["##a", "b"], "a b"),
        ("words", ["[UNK]"], ["a"], " a"),
        ("words, cleaned", ["it"], ["."], "."),
        ("words, cleaned", ["it"], ["'s", "a"], "'s a"),
        ("word ends", ["a"], ["b</w>", "a</w>"], "b a"),
        ("word ends", ["a</w>"], ["b</w>", "a</w>"], " b a"),
    ],
)
def test_known_ones(name, prompt, completion, text):
    def ids(parts):
        found = []
        for part in parts:
            if isinstance(part, bytes) and name == "byte level":
                found += ids_of(KINDS[name], [byte_letters(part)])
            elif isinstance(part, bytes) or part in (EURO, FACE):
                found += bytes_of(KINDS[name], part)
            else:
                found += ids_of(KINDS[name], [part])
        return found

    assert continuation(name, ids(prompt)).text(ids(completion)) == text


@given(st.text(st.characters(codec="utf-8"), max_size=30), st.lists(st.integers(0, 264), max_size=30))
def test_byte_level_texts_are_what_they_were(prompt, ids):
    """A prompt of whole characters changes nothing there: the completion decoded alone."""
    prompt_ids = ids_of(KINDS["byte level"], byte_letters(prompt))
    assert continuation("byte level", prompt_ids).text(ids) == KINDS["byte level"].decode(
        ids, skip_special_tokens=True
    )


@pytest.mark.parametrize("name", KINDS)
def test_tokens_of_log_probabilities(name):
    """The texts of single tokens are the text of all, where each is whole."""
    detokenizer, tokenizer = DETOKENIZERS[name], KINDS[name]
    prompt = tokenizer.encode("a", add_special_tokens=False)
    for token in range(len(tokenizer)):
        text = detokenizer.token_text(token)
        assert text == continuation(name, prompt, skip=False).text([token])
        first = continuation(name, [], skip=False)
        assert first.begins_text
        assert detokenizer.token_text(token, begins=True) == first.text([token])


def test_what_is_hidden():
    ids = dict(
        zip(["</s>", "<|end|>", ADDED], ids_of(KINDS["llama2"], ["</s>", "<|end|>", ADDED]), strict=True)
    )
    detokenizer = DETOKENIZERS["llama2"]
    stops = ("a", "b</s>c", "<|end|>", ADDED)
    left_out = {ids["</s>"]: "</s>", ids["<|end|>"]: "<|end|>"}
    assert detokenizer.hidden_in(stops, skip_special_tokens=True) == left_out
    assert detokenizer.hidden_in(stops, skip_special_tokens=False) == {}
    assert detokenizer.hidden_in(("</",), skip_special_tokens=True) == {}


class Counted(Continuation):
    """Counts the tokens that are decoded."""

    num_tokens = 0

    def decode(self, token_ids):
        self.num_tokens += len(token_ids)
        return super().decode(token_ids)


LONG = {
    "text": ("byte level", lambda tokenizer: tokenizer.convert_tokens_to_ids(["a", "b", "\u0120a"])),
    "spaces": ("llama2", lambda tokenizer: ids_of(tokenizer, [BAR])),
    "line ends": ("llama2", lambda tokenizer: bytes_of(tokenizer, "\n")),
    "characters in bytes": ("llama2", lambda tokenizer: bytes_of(tokenizer, FACE)),
    "broken bytes": ("llama2", lambda tokenizer: bytes_of(tokenizer, b"\xf0\xf0\x9f")),
    "broken byte level": ("byte level", lambda tokenizer: [tokenizer.convert_tokens_to_ids("\u00f0")]),
    "special": ("llama2", lambda tokenizer: ids_of(tokenizer, ["<|end|>"])),
    "unknown": ("byte level", lambda tokenizer: [UNKNOWN]),
    "cleaned": ("words, cleaned", lambda tokenizer: ids_of(tokenizer, ["it", "'", "s", "."])),
}


@pytest.mark.parametrize("case", LONG)
def test_linear_time(case):
    name, make = LONG[case]
    ids = make(KINDS[name])
    prompt = KINDS[name].encode("a", add_special_tokens=False)
    counts = []
    for length in (1000, 2000):
        made = Counted(DETOKENIZERS[name], prompt, skip_special_tokens=True)
        growing = GrowingText(made, 10)
        for count in range(length):
            growing.push(ids[count % len(ids)])
            assert len(growing.recent) < 500
        counts.append(made.num_tokens)
    assert counts[1] <= 2.1 * counts[0] + 100, counts
    assert counts[1] < 200 * 2000


def test_a_long_prompt_costs_nothing():
    for name, prompt in (("byte level", [5] * 100_000), ("llama2", ids_of(KINDS["llama2"], [BAR]) * 1000)):
        made = Counted(DETOKENIZERS[name], prompt, skip_special_tokens=True)
        made.text([3])
        assert made.num_tokens < (50 if name == "byte level" else 5 * len(prompt))
