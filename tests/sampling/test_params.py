"""Sampling parameters: vLLM's defaults, every mistake by its message, the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.errors import ConfigError, TreeshareError, one_line
from treeshare.sampling import SamplingParams

DEFAULTS = {
    "n": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "seed": None,
    "stop": [],
    "stop_token_ids": [],
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "thinking_token_budget": None,
    "skip_special_tokens": True,
    "include_stop_str_in_output": False,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "structured_outputs": None,
    "extra_args": None,
}

NAN, INF = math.nan, math.inf
HUGE = [2**31, 2**63, 2**64, 2**70, 10**30]
"""Integers that some array's integers cannot hold."""

FLAG = "True or False"
TEXTS = "a non-empty string, or a list of them"
IDS = "a list of token ids"
BIAS = "a mapping from token ids to numbers, at least -100, at most 100"
SEED = f"an integer from 0 to {2**64 - 1}"
PENALTY = "a number, at least -2, at most 2"
MISTAKES = [
    ("n", [0, -1, 2**20 + 1, *HUGE, 1.0, True, "1", None, NAN], f"an integer from 1 to {2**20}"),
    ("max_tokens", [0, -1, *HUGE[1:], 16.0, True], f"an integer from 1 to {2**63 - 1}"),
    ("min_tokens", [-1, 17, *HUGE, False, 0.0, None], "an integer from 0 to 16"),
    ("top_k", [-2, *HUGE, 1.5, True, None, NAN], f"an integer from -1 to {2**31 - 1}"),
    ("seed", [-1, *HUGE[2:], 0.0, True, "7"], SEED),
    ("logprobs", [-2, *HUGE, True, 1.0, "5"], f"an integer from -1 to {2**31 - 1}"),
    ("prompt_logprobs", [-2, *HUGE, True, 1.0, "5"], f"an integer from -1 to {2**31 - 1}"),
    ("thinking_token_budget", [-1, *HUGE, True, 1.0, "5"], f"an integer from 0 to {2**31 - 1}"),
    ("temperature", [-1e-9, NAN, INF, -INF, 10**309, True, "1", None, 1j], "a number, at least 0"),
    ("top_p", [0, 0.0, -0.1, 1.01, NAN, INF, True, None, "1"], "a number, more than 0, at most 1"),
    ("min_p", [-0.1, 1.01, NAN, INF, False, None], "a number, at least 0, at most 1"),
    ("presence_penalty", [-2.1, 2.1, NAN, INF, True, None], PENALTY),
    ("frequency_penalty", [-2.1, 2.1, NAN, INF, True, None], PENALTY),
    ("repetition_penalty", [0, 0.009, 101, -1, NAN, INF, True, None], "a number, at least 0.01, at most 100"),
    ("ignore_eos", [0, 1, None, "yes"], FLAG),
    ("skip_special_tokens", [0, 1, None, "yes"], FLAG),
    ("include_stop_str_in_output", [0, 1, None, "yes"], FLAG),
    ("stop", ["", [""], ["a", ""], [1], 0, 5, b"a", [b"a"], {"a"}, [None], [["a"]]], TEXTS),
    (
        "stop_token_ids",
        [[-1], *([i] for i in HUGE), [1.0], ["1"], [True], [None], 0, 7, "12", "", b"12", {1}],
        IDS,
    ),
    (
        "allowed_token_ids",
        [[], [-1], *([i] for i in HUGE), [1.0], [True], 0, "12", b"12", {1}],
        f"{IDS}, at least one",
    ),
    ("bad_words", ["a", [""], [1], 0, {"a"}, [None]], "a list of non-empty strings"),
    ("bad_words", [["\ud800"], ["a", "b\udfff"]], "text without lone surrogates"),
    ("logit_bias", [[], 5, "1", [(1, 2)]], BIAS),
    ("structured_outputs", ["a", 5, []], "StructuredOutputsParams, or a mapping with its names"),
    ("extra_args", ["a", 5, [], {1: 2}], "a mapping from names"),
]


def test_defaults():
    assert SamplingParams().to_dict() == DEFAULTS
    assert not SamplingParams().has_penalties


@pytest.mark.parametrize(
    ("name", "got", "expected"), [(name, got, expected) for name, gots, expected in MISTAKES for got in gots]
)
def test_mistakes(name, got, expected):
    with pytest.raises(
        ConfigError, match="^" + re.escape(f"{name}: got {one_line(repr(got))}, expected {expected}") + "$"
    ):
        SamplingParams(**{name: got})


def test_every_field_has_its_mistakes():
    assert {name for name, _, _ in MISTAKES} == {field.name for field in dataclasses.fields(SamplingParams)}
    assert issubclass(ConfigError, (TreeshareError, ValueError))


@pytest.mark.parametrize(
    "values",
    [
        {"top_k": -1},
        {"temperature": 0},
        {"temperature": 1e-320},
        {"top_p": 1e-9},
        {"top_p": 1},
        {"min_p": 1},
        {"presence_penalty": -2, "frequency_penalty": 2},
        {"seed": 2**64 - 1},
        {"seed": 0},
        {"min_tokens": 16},
        {"logprobs": 0},
        {"n": 2**20, "max_tokens": 2**63 - 1, "min_tokens": 2**63 - 1, "top_k": 2**31 - 1},
        {"logprobs": 2**31 - 1, "stop_token_ids": [0, 2**31 - 1]},
        {"temperature": 10**300},
        {"stop": "a"},
        {"stop": []},
        {"stop_token_ids": range(3)},
        {"logit_bias": {}},
        {"logit_bias": {"7": 100, 3: -100}},
        {"allowed_token_ids": [2**31 - 1]},
        {"bad_words": []},
        {"bad_words": ["a", " b", "a"]},
        {"structured_outputs": {"choice": ["a"]}},
        {"extra_args": {"x": [1, None]}},
    ],
)
def test_borders_are_in(values):
    params = SamplingParams(**values)
    assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params


@pytest.mark.parametrize("name", ["top_k", "temperature", "n", "seed"])
def test_integers_that_python_does_not_write(name):
    with pytest.raises(ConfigError, match=f"^{name}: got an integer of thousands of digits, expected a"):
        SamplingParams(**{name: 10**5000})


def test_a_long_value_is_cut():
    with pytest.raises(ConfigError) as raised:
        SamplingParams(stop=["a" * 5000, ""])
    assert len(str(raised.value)) < 400


def test_numbers_become_floats():
    """An integer that is not in an array's range would fail behind everybody's back, in the engine."""
    params = SamplingParams(temperature=10**300, top_p=1, min_p=0, presence_penalty=1, repetition_penalty=2)
    kinds = {name: type(value) for name, value in params.to_dict().items() if value is not None}
    assert {name for name, kind in kinds.items() if kind is float} == {
        "temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    }  # fmt: skip
    assert params == SamplingParams.from_dict(params.to_dict())


def test_stops_become_tuples():
    stop = ["a", "b"]
    params = SamplingParams(stop=stop, stop_token_ids=[3, 4])
    stop.append("c")
    assert (params.stop_strings, params.stop_ids) == (("a", "b"), (3, 4))
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams().stop_strings == SamplingParams().stop_ids == ()
    assert SamplingParams(stop=("a", "b"), stop_token_ids=(3, 4)) == params
    assert hash(params) == hash(dataclasses.replace(params))


@pytest.mark.parametrize(
    ("bias", "name", "got"),
    [
        ({1: 100.5}, "logit_bias[1]", 100.5),
        ({1: NAN}, "logit_bias[1]", NAN),
        ({1: INF}, "logit_bias[1]", INF),
        ({"2": True}, "logit_bias[2]", True),
        ({1: None}, "logit_bias[1]", None),
        ({"a": 1}, "logit_bias", "a"),
        ({-1: 1}, "logit_bias", -1),
        ({1.0: 1}, "logit_bias", 1.0),
        ({2**31: 1}, "logit_bias", 2**31),
        ({True: 1}, "logit_bias", True),
    ],
)
def test_mistakes_of_a_bias(bias, name, got):
    with pytest.raises(ConfigError, match="^" + re.escape(f"{name}: got {got!r}, expected {BIAS}") + "$"):
        SamplingParams(logit_bias=bias)


def test_masks_are_values():
    bias, words = {5: 1, "3": 2.5}, ["b", "a", "b"]
    params = SamplingParams(logit_bias=bias, bad_words=words, structured_outputs={"json": "{}"})
    bias[9] = 1
    words.append("c")
    assert params.logit_bias == {3: 2.5, 5: 1.0}
    assert params.bad_words == ("b", "a")
    assert params.to_dict()["logit_bias"] == {"3": 2.5, "5": 1.0}
    assert params.to_dict()["structured_outputs"] == {"json": "{}"}
    assert hash(params) == hash(dataclasses.replace(params))
    assert params == dataclasses.replace(params)


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_has_penalties(penalty):
    assert SamplingParams(**{penalty: 0.5}).has_penalties


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().n = 2


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("max_token", "; did you mean max_tokens?"),
        ("temprature", "; did you mean temperature?"),
        ("topp", "; did you mean top_p?"),
        ("top-k", "; did you mean top_k?"),
        ("best_of_all_worlds", ""),
    ],
)
def test_unknown_key(name, remedy):
    message = f"sampling parameter: got {name!r}, expected a known name{remedy}"
    with pytest.raises(ConfigError, match="^" + re.escape(message) + "$"):
        SamplingParams.from_dict({"n": 2, name: 1})


def test_from_dict_checks_values():
    with pytest.raises(ConfigError, match=r"^n: got 0, expected an integer from 1 to 1048576$"):
        SamplingParams.from_dict({"n": 0})


VALID = st.fixed_dictionaries(
    {},
    optional={
        "n": st.integers(1, 1000),
        "temperature": st.floats(0, 1e300),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(-1, 10**6),
        "min_p": st.floats(0, 1),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.01, 100),
        "seed": st.none() | st.integers(0, 2**64 - 1),
        "stop": st.none() | st.text(min_size=1) | st.lists(st.text(min_size=1)),
        "stop_token_ids": st.none() | st.lists(st.integers(0, 10**6)),
        "ignore_eos": st.booleans(),
        "max_tokens": st.integers(20, 10**6),
        "min_tokens": st.integers(0, 16),
        "logprobs": st.none() | st.integers(0, 100),
        "skip_special_tokens": st.booleans(),
        "include_stop_str_in_output": st.booleans(),
        "logit_bias": st.none() | st.dictionaries(st.integers(0, 10**6), st.floats(-100, 100)),
        "allowed_token_ids": st.none() | st.lists(st.integers(0, 10**6), min_size=1),
        "bad_words": st.none() | st.lists(st.text(min_size=1)),
        "structured_outputs": st.none() | st.just({"choice": ["a", "b"]}),
    },
)


@given(VALID)
def test_round_trip_through_json(values):
    params = SamplingParams.from_dict(values)
    assert SamplingParams.from_dict(json.loads(json.dumps(params.to_dict()))) == params
    assert params == SamplingParams(**values)
