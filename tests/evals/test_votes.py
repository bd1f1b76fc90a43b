"""Votes for equivalent answers: a function of the answers, whatever order they come in."""

from __future__ import annotations

import itertools
import random

import pytest

from treeshare.evals import CheckResult, Problem, Task, evaluate_completions
from treeshare.evals.early_end import AnswerMargin
from treeshare.evals.math_judge import MathJudge
from treeshare.evals.metrics import majority_curve
from treeshare.evals.results import CompletionResult
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.evals.votes import answer_classes, representatives

JUDGE = MathJudge()


def classes(answers):
    return answer_classes(answers, same=JUDGE.same, alike=lambda a, b: JUDGE.judge(a, b).right)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["0.5", "1/2", "\\frac12", "2"], [["2"], ["0.5", "1/2", "\\frac12"]]),
        (["5", "5 cm"], [["5", "5 cm"]]),
        (["5", "5 cm", "5 in"], [["5"], ["5 cm"], ["5 in"]]),
        (["52", "52_8"], [["52", "52_8"]]),
        (["52", "52_8", "52_7"], [["52"], ["52_7"], ["52_8"]]),
        (["50%", "50", "1/2"], [["50"], ["1/2"], ["50%"]]),
        (["x=5", "5", "5.0"], [["5", "5.0", "x=5"]]),
        (["x=5", "5", "y=5"], [["5"], ["x=5"], ["y=5"]]),
        (["1,2", "2,1", "(1,2)"], [["1,2", "2,1"], ["(1,2)"]]),
        (["yes", "Yes", "no"], [["no"], ["Yes", "yes"]]),
        ([], []),
    ],
)
def test_classes(answers, expected):
    for order in itertools.permutations(answers):
        assert classes(order) == expected
    assert classes(answers * 3) == expected


def test_without_an_equivalence_each_answer_is_alone():
    assert answer_classes(["b", "a", "b"]) == [["a"], ["b"]]


def test_a_relation_that_is_not_transitive_joins_only_what_goes_together():
    near = lambda a, b: abs(int(a) - int(b)) <= 1  # noqa: E731
    assert answer_classes(["1", "2", "4"], alike=near) == [["1", "2"], ["4"]]
    assert answer_classes(["1", "2", "3"], alike=near) == [["1"], ["2"], ["3"]]


def test_the_representative_is_the_most_frequent_then_the_shortest_then_the_first():
    given = ["1/2", "0.5", None, "0.5", "2"]
    assert representatives(given, classes([a for a in given if a])) == ["0.5", "0.5", None, "0.5", "2"]
    assert representatives(["\\frac12", "1/2", "0.5"], [["0.5", "1/2", "\\frac12"]]) == ["0.5"] * 3


class Halves(Task):
    name, stop, max_tokens, needs_sandbox = "halves", ("\n",), 8, False

    def load(self, data):
        return [Problem(task_id="a", prompt="")]

    def check(self, problem, completion, sandbox, limits):
        right = JUDGE.judge("50\\%", completion).right
        return CheckResult(verdict=Verdict.PASSED if right else Verdict.WRONG_ANSWER, detail="")

    def answer(self, problem, completion):
        return completion or None

    def answer_classes(self, problem, answers):
        return classes(answers)


def results_of(texts):
    records = [{"task_id": "a", "completion_index": i, "completion": text} for i, text in enumerate(texts)]
    task = Halves()
    evaluation = evaluate_completions(task, task.load(None), records, None, workers=2, limits=Limits())
    return [CompletionResult.model_validate_json(line) for line in evaluation.results_jsonl().splitlines()]


def test_majority_counts_equivalent_answers_in_any_order():
    texts = ["0.5", "7", "1/2", "7", "\\frac{1}{2}", ""]
    for seed in range(5):
        random.Random(seed).shuffle(texts)
        results = results_of(texts)
        assert {r.answer for r in results} == {"0.5", "7", None}
        curve = majority_curve({"a": [(None, result) for result in results]})
        assert curve[len(texts) if len(texts) in curve else max(curve)].value == majority(texts, max(curve))
    assert {r.answer for r in results_of(["0.5", "0.5", "1/2"])} == {"0.5"}


def majority(texts, k):
    """The chance that three votes beat two, and so on, by all draws of k."""
    won = 0.0
    draws = list(itertools.combinations(texts, k))
    for draw in draws:
        halves = sum(text not in ("7", "") for text in draw)
        sevens = draw.count("7")
        won += 1.0 if halves > sevens else 0.5 if halves == sevens and halves else 0.0
    return pytest.approx(won / len(draws), abs=1e-12)


def test_a_class_is_right_if_its_representative_is():
    """``50`` and ``50%`` vote together; ``50%`` is right, and what it stands for counts as right."""
    results = results_of(["50%", "50%", "50%"])
    assert all(r.passed and r.answer_passed is None for r in results)
    said = [(False, None), (True, False), (False, None)]
    joined = [
        CompletionResult(
            task_id="a",
            completion_index=i,
            passed=passed,
            verdict="",
            answer="x",
            answer_passed=answer_passed,
        )
        for i, (passed, answer_passed) in enumerate(said)
    ]
    assert majority_curve({"a": [(None, result) for result in joined]})[1].value == 0.0
    joined = [result.model_copy(update={"answer_passed": None}) for result in joined]
    assert majority_curve({"a": [(None, result) for result in joined]})[1].value == 1.0, "the fault is seen"


def test_a_margin_counts_equivalent_answers():
    rule = AnswerMargin(lambda _, text: text, 3, lambda _, answers: classes(answers))
    assert [rule.reason("a", text) for text in ("0.5", "7", "1/2", "\\frac12")] == [None] * 4
    assert rule.reason("a", "1/2") == "answer 1/2 is ahead by 3"
    plain = AnswerMargin(lambda _, text: text, 2)
    assert [plain.reason("a", text) for text in ("0.5", "1/2")] == [None, None]
    assert plain.reason("a", "1/2") is None
