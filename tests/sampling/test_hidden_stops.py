"""Stop strings that are or hold special tokens which the text leaves out; by brute force over shown text."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from tests.examples import examples
from tests.text.kinds import ADDED, DETOKENIZERS, KINDS, byte_letters, byte_level
from treeshare.sampling import Ending, SamplingParams, StopChecker
from treeshare.text import Continuation, Detokenizer


def watching(params, continued, eos=frozenset()):
    return StopChecker(params, max_tokens=1000, eos_token_ids=eos, continuation=continued)


HIDDEN = KINDS["byte level"]
SPELLINGS = ["</s>", "<|end|>"]


@examples(80)
@given(
    st.lists(st.sampled_from(["a", "b", " a", "</s>", "<|end|>", "<", "|", "\u20ac", ADDED]), max_size=40),
    st.lists(
        st.lists(
            st.sampled_from(["a", "b", " ", "</s>", "<|end|>", "<", ">", "\u20ac", ADDED]),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 20),
    st.booleans(),
)
@example(["a", "</s>", "b"], [["</s>", "a"], ["a", "</s>"]], 0, False)
def test_stops_with_hidden_tokens(parts, stops, min_tokens, include):
    """By brute force over the text in which special tokens are spelled, and cut where it holds a stop."""
    letters = lambda text: byte_letters(text.encode())  # noqa: E731
    names = [
        p if p in (*SPELLINGS, ADDED) else c
        for p in parts
        for c in ([p] if p in (*SPELLINGS, ADDED) else letters(p))
    ]
    ids = HIDDEN.convert_tokens_to_ids(names)
    stops = ["".join(stop) for stop in stops]
    params = SamplingParams(
        stop=stops,
        min_tokens=min_tokens,
        max_tokens=1000,
        include_stop_str_in_output=include,
        ignore_eos=True,
    )
    prompt = HIDDEN.encode("ab", add_special_tokens=False)
    continued = Continuation(DETOKENIZERS["byte level"], prompt, skip_special_tokens=True)
    checker = watching(params, continued)
    got, pieces = (len(ids), None), ""
    for count in range(1, len(ids) + 1):
        ending = checker.check(ids[:count])
        if ending is not None:
            got = count, ending
            assert ending.text.startswith(pieces)
            break
        pieces += checker.take(ids[:count])
    assert got == spelled_by_force(ids, stops, min_tokens, include)


def spelled_by_force(ids, stops, min_tokens, include):
    hidden_stops = [stop for stop in stops if any(spelling in stop for spelling in SPELLINGS)]

    def text_of(count, skip):
        return HIDDEN.decode(ids[:count], skip_special_tokens=skip)

    def first_seen(place, stop, skip):
        return next(n for n in range(len(ids) + 1) if text_of(n, skip).startswith(stop, place))

    def visible(place):
        """How much of the shown text up to ``place`` is no special token's."""
        count = next(n for n in range(len(ids) + 1) if len(text_of(n, False)) > place)
        token = HIDDEN.convert_ids_to_tokens(ids[count - 1])
        inside = 0 if token in SPELLINGS else place - len(text_of(count - 1, False))
        return len(text_of(count - 1, True)) + inside

    for count in range(1, len(ids) + 1):
        found = []
        for skip, some in ((True, stops), (False, hidden_stops)):
            text = text_of(count, skip)
            for stop in some:
                for place in range(len(text)):
                    if text.startswith(stop, place) and first_seen(place, stop, skip) > min_tokens:
                        found.append((place if skip else visible(place), int(skip), stop))
        if found and count > min_tokens:
            place, _, stop = min(found)
            return count, Ending("stop", stop, text_of(count, True)[:place] + stop * include)
    return len(ids), None


def test_a_hidden_token_that_ends_it_anyway():
    """End-of-sequence stays that; a stop string that ends with it cuts the text before."""
    prompt = HIDDEN.encode("ab", add_special_tokens=False)
    ids = HIDDEN.convert_tokens_to_ids(["a", "b", "</s>"])
    for stop, ending in (
        ("</s>", Ending("stop", None, "ab")),
        ("b</s>", Ending("stop", "b</s>", "a")),
        ("c</s>", Ending("stop", None, "ab")),
    ):
        continued = Continuation(DETOKENIZERS["byte level"], prompt, skip_special_tokens=True)
        checker = watching(SamplingParams(stop=stop), continued, eos=frozenset(ids[-1:]))
        assert [checker.check(ids[:count]) for count in (1, 2, 3)] == [None, None, ending]


def test_an_added_token_that_the_decoder_misspells():
    """A byte-level decoder takes the letter for a byte; the stop string is its spelling all the same."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["<\u00e9>"])
    ids = tokenizer.convert_tokens_to_ids(["a", "<\u00e9>"])
    assert tokenizer.decode(ids) == "a<\ufffd>"
    for skip in (True, False):
        continued = Continuation(Detokenizer(tokenizer), ids[:1], skip_special_tokens=skip)
        checker = watching(SamplingParams(stop="<\u00e9>"), continued)
        assert checker.check(ids[:1]) is None
        assert checker.check(ids) == Ending("stop", "<\u00e9>", "a")
