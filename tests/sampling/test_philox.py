"""Philox against its published answers and a scalar twin; uniforms as a function of their place."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from treeshare.errors import ConfigError
from treeshare.sampling import philox4x32, problem_key, uniforms

WORD = st.integers(0, 2**32 - 1)

KNOWN = [
    ([0] * 4, [0] * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def scalar_philox(counter, key):
    """Philox4x32-10 word by word, from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_number in range(10):
        if round_number:
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        high0, low0 = divmod(0xD2511F53 * c0, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return [c0, c1, c2, c3]


def scalar_uniform(seed, key, index, position):
    words = scalar_philox([key % 2**32, key >> 32, index, position], [seed % 2**32, seed >> 32])
    return ((words[0] << 32 | words[1]) >> 11) / 2**53


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    words = [int(word, 16) for word in answer.split()]
    assert philox4x32(np.array(counter, np.uint64), tuple(key)).tolist() == words
    assert scalar_philox(counter, key) == words


@given(st.lists(st.tuples(WORD, WORD, WORD, WORD), min_size=1, max_size=5), st.tuples(WORD, WORD))
def test_equals_the_scalar_twin(counters, key):
    words = philox4x32(np.array(counters, np.uint64), key)
    assert words.tolist() == [scalar_philox(counter, key) for counter in counters]


@given(st.integers(0, 2**64 - 1), st.lists(st.tuples(st.integers(0, 2**64 - 1), WORD, WORD), min_size=1))
def test_uniforms_one_by_one(seed, places):
    together = uniforms(seed, *zip(*places, strict=True))
    assert together.dtype == np.float64
    assert together.tolist() == [scalar_uniform(seed, *place) for place in places]
    assert together.tolist() == [uniforms(seed, *([x] for x in place))[0] for place in places]
    assert ((together >= 0) & (together < 1)).all()
    assert (together * 2**53 % 1 == 0).all()


def test_no_draws():
    assert uniforms(0, [], [], []).shape == (0,)


@pytest.mark.parametrize(
    ("change", "step"), [(i, 2**bit) for i, bits in enumerate((64, 64, 32, 32)) for bit in range(0, bits, 9)]
)
def test_each_argument_matters(change, step):
    place = [5, 6, 7, 8]
    other = [value + step * (i == change) for i, value in enumerate(place)]
    assert uniforms(place[0], *([x] for x in place[1:])) != uniforms(other[0], *([x] for x in other[1:]))


def test_arguments_do_not_trade_places():
    places = [(1, 2, 3), (2, 1, 3), (3, 2, 1), (1, 3, 2), (1, 2, 4), (2**32, 2, 3), (2**32 + 1, 2, 3)]
    assert len(set(uniforms(9, *zip(*places, strict=True)).tolist())) == len(places)


@pytest.mark.parametrize("varies", ["problem", "completion", "position"])
def test_uniform(varies):
    num = 20_000
    ramp, same = np.arange(num), np.full(num, 3)
    keys = [problem_key(i) for i in range(num)] if varies == "problem" else same
    numbers = uniforms(
        11, keys, ramp if varies == "completion" else same, ramp if varies == "position" else same
    )
    counts = np.histogram(numbers, bins=64, range=(0, 1))[0]
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    pairs = np.histogram2d(numbers[:-1:2], numbers[1::2], bins=8, range=[(0, 1), (0, 1)])[0]
    assert scipy.stats.chisquare(pairs.ravel()).pvalue > 1e-3
    assert len(np.unique(numbers)) == num


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True])
def test_seed_is_checked(seed):
    with pytest.raises(ConfigError, match=r"^seed: got .*, expected an integer from 0 to 2\*\*64 - 1$"):
        uniforms(seed, [1], [1], [1])


def test_problem_keys_never_change():
    """A run is replayed from its ids: these numbers are part of the format."""
    assert {problem_id: problem_key(problem_id) for problem_id in KEYS} == KEYS


def test_problem_keys_know_the_type():
    keys = [problem_key(problem_id) for problem_id in ("1", b"1", 1, "", b"", 0, -1, "HumanEval/1")]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**64 for key in keys)


def test_problem_key_of_odd_text():
    assert problem_key("\ud800") != problem_key("\ud801")


KEYS = {
    "HumanEval/0": 0xECD8D8F7B65EB3EA,
    "": 0x0918F34837B7A8DC,
    b"HumanEval/0": 0xF886D0067B764552,
    0: 0x636971503AFF47BA,
    -7: 0xE60E474429EB194B,
    2**80: 0x2A483FC57C246F1F,
}
