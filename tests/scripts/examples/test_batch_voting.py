from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.scripts.loading import EXAMPLES, load_script
from treeshare.errors import ConfigError

batch_voting = load_script(EXAMPLES, "batch_voting")


def number(text):
    found = re.search(r"\d+", text)
    return found[0] if found else None


def yes(answer):
    return batch_voting.Vote(answer=answer, confident=True)


def unsure(answer):
    return batch_voting.Vote(answer=answer, confident=False)


def test_the_text_of_a_batch():
    assert batch_voting.batch_text(["one\nplus one?", "two?"]) == "Q1: one plus one?\nQ2: two?\nA1:"
    assert batch_voting.batch_text(["one?"], ["1 (confident)"]) == "Q1: one?\nA1: 1 (confident)"


@pytest.mark.parametrize(
    ("reply", "votes"),
    [
        (" 7 (confident)\nA2: 8 (not confident)\nA3: 9 (confident)", [yes("7"), unsure("8"), yes("9")]),
        (" 7\nA3: 9 (confident)\n", [unsure("7"), unsure(None), yes("9")]),
        (" none (confident)\nA2: 8 (confident)\nA2: 9 (confident)", [unsure(None), yes("8"), unsure(None)]),
        ("", [unsure(None)] * 3),
        (" 1\nA4: 2\nA99: 3", [unsure("1"), unsure(None), unsure(None)]),
        (" 7 (confident) A2: 8", [yes("7"), unsure(None), unsure(None)]),
    ],
)
def test_replies_are_read_by_their_numbers(reply, votes):
    assert batch_voting.parse_reply(reply, 3, number) == votes


def test_settled_means_confident_and_the_same_in_a_row():
    assert batch_voting.is_settled([yes("1"), yes("1")], 2)
    assert batch_voting.is_settled([yes("2"), yes("1"), yes("1")], 2)
    assert not batch_voting.is_settled([yes("1")], 2)
    assert not batch_voting.is_settled([yes("1"), unsure("1")], 2)
    assert not batch_voting.is_settled([yes("1"), yes("2")], 2)
    assert not batch_voting.is_settled([yes("1"), unsure(None), yes("1")], 2)


def test_the_weighted_majority_and_its_ties():
    assert batch_voting.weighted_majority([unsure("1"), unsure("1"), yes("2")], 0.2) == "2"
    assert batch_voting.weighted_majority([unsure("1"), unsure("1"), yes("2")], 1.0) == "1"
    assert batch_voting.weighted_majority([yes("2"), yes("1")], 0.2) == "2"
    assert batch_voting.weighted_majority([unsure(None), unsure("3")], 0.0) == "3"
    assert batch_voting.weighted_majority([unsure(None)], 0.2) is None
    assert batch_voting.weighted_majority([], 0.2) is None


@given(st.sets(st.integers(0, 50)), st.integers(0, 5), st.integers(0, 5))
def test_a_permutation_is_one_and_a_retired_question_does_not_stir_the_others(items, seed, round_index):
    order = batch_voting.permuted(sorted(items), seed=seed, round_index=round_index)
    assert sorted(order) == sorted(items)
    fewer = batch_voting.permuted(sorted(items)[1:], seed=seed, round_index=round_index)
    assert fewer == [item for item in order if item in fewer]


class Model:
    """Answers ``n`` with ``n``; sure of even numbers only, wrong on 5 at the first place of a batch."""

    def __init__(self):
        self.asked = []

    def __call__(self, prompts):
        replies = []
        for prompt in prompts:
            numbers = re.findall(r"^Q\d+: (\d+)\?$", prompt, re.MULTILINE)
            self.asked += numbers
            lines = []
            for place, number in enumerate(numbers, start=1):
                answer = "6" if number == "5" and place == 1 else number
                sure = "confident" if int(number) % 2 == 0 else "not confident"
                lines.append(f"A{place}: {answer} ({sure})")
            replies.append("\n".join(lines)[3:])
        return replies


def test_rounds_permute_vote_and_retire():
    model = Model()
    questions = [f"{i}?" for i in range(10)]
    options = batch_voting.BatchPromptOptions(batch_size=4, num_rounds=6, num_agreeing=2)
    result = batch_voting.run_batch_prompt(questions, model, number, options, preamble="P")
    assert result.answers == [str(i) for i in range(10)]
    assert [len(votes) for votes in result.votes] == [2, 6, 2, 6, 2, 6, 2, 6, 2, 6]
    assert result.num_retired == 5
    assert [len(prompts) for prompts in result.prompts] == [3, 3, 2, 2, 2, 2]
    assert all(prompt.startswith("P\n\nQ1: ") for prompts in result.prompts for prompt in prompts)
    assert model.asked[:10] != model.asked[10:20]
    assert sorted(model.asked[:10]) == sorted(model.asked[10:20])
    again = batch_voting.run_batch_prompt(questions, Model(), number, options, preamble="P")
    assert again == result


def test_no_questions_and_one_round():
    assert batch_voting.run_batch_prompt([], Model(), number, batch_voting.BatchPromptOptions()).prompts == []
    result = batch_voting.run_batch_prompt(
        ["2?"], Model(), number, batch_voting.BatchPromptOptions(num_rounds=1)
    )
    assert (result.answers, result.num_retired) == (["2"], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"num_rounds": 0}, "num_rounds: got 0"),
        ({"num_agreeing": 0}, "num_agreeing: got 0"),
        ({"unsure_weight": 1.5}, "unsure_weight: got 1.5"),
        ({"unsure_weight": float("nan")}, "unsure_weight: got nan"),
    ],
)
def test_bad_options_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        batch_voting.BatchPromptOptions(**arguments)
