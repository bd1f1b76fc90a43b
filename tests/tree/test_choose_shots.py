from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.errors import ConfigError
from treeshare.installation import how_to_add
from treeshare.tree import SHOT_CHOICES, FewShotPrompts, Shot, choose_shots

WORDS = ["sort a list", "sum of a list", "reverse a string", "sort a string", "prime number test"]
POOL = [Shot(prompt=text, answer=" ok", task_id=str(i)) for i, text in enumerate(WORDS)]
OTHERS = [("x", "how to sort a list of numbers"), ("y", "is this number prime"), ("z", "")]


def ids(rows):
    return [[shot.task_id for shot in row] for row in rows]


def test_fixed_are_the_first():
    assert ids(choose_shots(OTHERS, POOL, num_shots=2)) == [["0", "1"]] * 3


def test_random_is_one_draw_that_the_seed_decides():
    draws = {
        seed: ids(choose_shots(OTHERS, POOL, num_shots=3, choice="random", seed=seed)) for seed in range(30)
    }
    assert all(rows[0] == rows[1] == rows[2] for rows in draws.values())
    assert draws[7] == ids(choose_shots(OTHERS, POOL, num_shots=3, choice="random", seed=7))
    assert len({tuple(rows[0]) for rows in draws.values()}) > 10
    assert {shot for rows in draws.values() for shot in rows[0]} == {"0", "1", "2", "3", "4"}
    more = ids(choose_shots(OTHERS, POOL, num_shots=5, choice="random", seed=7))
    assert more[0][:3] == draws[7][0]


def test_nearest_stands_last_and_ties_go_to_the_first():
    rows = ids(choose_shots(OTHERS, POOL, num_shots=2, choice="nearest"))
    assert rows[0][-1] == "0"
    assert rows[1][-1] == "4"
    assert rows[2] == ["1", "0"]


@pytest.mark.parametrize("choice", SHOT_CHOICES)
def test_no_problem_gets_itself_or_its_own_prompt(choice):
    problems = [(str(i), text) for i, text in enumerate(WORDS)] + [("renamed", WORDS[0])]
    for (task_id, prompt), row in zip(
        problems, choose_shots(problems, POOL, num_shots=4, choice=choice, seed=3), strict=True
    ):
        assert len({shot.prompt for shot in row}) == 4
        assert all(shot.task_id != task_id and shot.prompt != prompt for shot in row)


def test_what_each_choice_costs_in_unique_tokens():
    problems = [(str(i), text) for i, text in enumerate(WORDS)]
    unique = {}
    for choice in SHOT_CHOICES:
        rows = choose_shots([("", text) for _, text in problems], POOL[:2], num_shots=1, choice=choice)
        prompts = FewShotPrompts(
            problems=[text + "?" for _, text in problems],
            shots_by_problem=[[shot.text for shot in row] for row in rows],
        )
        unique[choice] = prompts.tree(lambda text: [ord(c) for c in text]).stats().unique_tokens
    assert unique["fixed"] <= unique["nearest-shared"] <= unique["nearest"]


@given(st.lists(st.text("ab \n", max_size=6), max_size=4), st.sampled_from(SHOT_CHOICES))
def test_any_texts_do(texts, choice):
    pool = [Shot(prompt=f"{i}{text}", answer="") for i, text in enumerate(texts)]
    rows = choose_shots([("p", text) for text in texts], pool, num_shots=len(pool), choice=choice)
    assert all(sorted(s.prompt for s in row) == sorted(s.prompt for s in pool) for row in rows)


def test_a_pool_without_words():
    pool = [Shot(prompt=" " * i, answer="") for i in (1, 2)]
    assert choose_shots([("p", "?")], pool, num_shots=2, choice="nearest") == [pool[::-1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_shots": -1}, "shots: got -1, expected an integer >= 0"),
        ({"num_shots": 1.0}, "shots: got 1.0"),
        ({"num_shots": 6}, "shots: got 6, expected at most 5, the number of worked examples for x"),
        (
            {"num_shots": 1, "choice": "best"},
            "shot_choice: got 'best', expected one of fixed, random, nearest, nearest-shared",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        choose_shots(OTHERS, POOL, **arguments)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ConfigError, match="nearest needs scikit-learn; " + re.escape(how_to_add("evals"))):
        choose_shots(OTHERS, POOL, num_shots=1, choice="nearest")
