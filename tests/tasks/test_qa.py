"""Questions and answers of any JSON lines file: fields, judges, what is refused."""

from __future__ import annotations

import json

import pytest

from treeshare.errors import ConfigError, DataError
from treeshare.evals import PromptOptions, build_prompts
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.tasks.registry import get_task


@pytest.fixture
def make(tmp_path):
    """``make(answers, judge="math")``: the task and its problems, one for each answer."""

    def made(answers, **options):
        path = tmp_path / "data.jsonl"
        rows = [{"question": f"Q{i}", "answer": answer} for i, answer in enumerate(answers)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = get_task("qa", options=options)
        return task, task.load(path), path

    return made


CASES = {
    "exact": [
        ("Paris", "Paris", True),
        ("Paris", "The answer is Paris.", True),
        ("New  York", "New York", True),
        ("Paris", "paris", False),
        ("Paris", "Lyon", False),
    ],
    "number": [
        (7, "7", True),
        ("1,450.50", "The answer is $1450.5", True),
        (7, " 7.0", True),
        (-3, "\\boxed{-3}", True),
        (7, "seven", False),
        (7, "The answer is 8", False),
        ("#### 12", "#### 12", True),
    ],
    "math": [
        ("\\frac12", "\\boxed{0.5}", True),
        (0.5, "The answer is $\\frac{1}{2}$.", True),
        ("x=5", " 5", True),
        ("52_8", "\\boxed{52_7}", False),
        ("5", "6", False),
    ],
    "regex": [
        ("colou?r", "The Color is color", True),
        ("^yes\\b", "yes, it is", True),
        ("^yes$", "no", False),
    ],
    "choice": [
        ("B", " B", True),
        ("b", "(B) because", True),
        ("(B)", "The answer is **B**.", True),
        ("B", "I think it is (B), not\n(C).\nAnswer: B", True),
        ("B", "The best option is C", False),
        ("B", "\\boxed{\\text{B}}", True),
        ("B", "Because it is small.", False),
        ("B", "B) Rome", True),
        ("A", "A dog is small.\nThe answer is (A).", True),
        (2, "The answer is 2", True),
    ],
}


@pytest.mark.parametrize("judge", CASES)
def test_judges(make, judge):
    task, problems, _ = make([gold for gold, _, _ in CASES[judge]], judge=judge)
    for problem, (gold, completion, is_right) in zip(problems, CASES[judge], strict=True):
        result = task.check(problem, completion, None, Limits())
        assert result.passed == is_right, (gold, completion, result.detail)
        assert result.verdict in (Verdict.PASSED, Verdict.WRONG_ANSWER)
        assert result.passed or result.detail


@pytest.mark.parametrize(
    ("judge", "reply", "answer"),
    [
        ("math", "<think>\\boxed{1}</think>\nSo \\boxed{2}.", "2"),
        ("math", "The answer is 1. Wait.\nThe answer is 2.", "2"),
        ("number", "The answer is 1. No, the answer is 2.", "2"),
        ("choice", "<think>The answer is A</think>The answer is (C).", "C"),
        ("exact", "The answer is Rome. Or not:\n**Answer:** Paris", "Paris"),
        ("math", "<think>\\boxed{1}", None),
    ],
)
def test_of_a_chat_reply_the_last_statement_counts(make, judge, reply, answer):
    task, problems, _ = make(["1"] if judge != "choice" else ["A"], judge=judge)
    assert task.answer(problems[0], task.from_chat(problems[0], reply)) == answer
    assert task.chat_instruction


def test_fields_ids_and_shots(tmp_path):
    path = tmp_path / "data.json"
    rows = [{"q": {"text": f"{i}+1="}, "n": i + 1, "id": i} for i in range(3)]
    path.write_text(json.dumps(rows))
    task = get_task("qa", options={"prompt_field": "q.text", "answer_field": "n", "judge": "number"})
    problems = task.load(path)
    assert [(p.task_id, p.prompt, p.data["answer"]) for p in problems] == [
        ("0", "0+1=", "1"),
        ("1", "1+1=", "2"),
        ("2", "2+1=", "3"),
    ]
    built = build_prompts(task, problems, PromptOptions(data=path, num_shots=1))
    assert built.texts() == ["1+1= 2\n\n0+1=", "0+1= 1\n\n1+1=", "0+1= 1\n\n2+1="]


@pytest.mark.parametrize(
    ("answers", "options", "message"),
    [
        (["x"], {"judge": "nope"}, "--judge: got 'nope', expected one of exact, number"),
        (["x"], {"judge": "number"}, "record 0, answer: got 'x', expected a number"),
        (["x", "["], {"judge": "regex"}, "record 1, answer: got '\\[', expected a pattern"),
        (["A", "Rome"], {"judge": "choice"}, "record 1, answer: got 'Rome', expected a choice"),
        ([""], {}, "an empty answer"),
        ([[1]], {}, "got list, expected text or a number"),
        (
            ["x"],
            {"prompt_field": "prompt"},
            "no field prompt, there are: answer, question; give --prompt-field",
        ),
        (["x"], {"answer_field": "answer.text"}, "no field answer.text"),
        (["x"], {"answer_field": ""}, "--answer-field: got ''"),
        (["x"], {"field": "y"}, "--task-option: got 'field'"),
    ],
)
def test_what_does_not_fit_is_one_line(make, answers, options, message):
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        make(answers, **options)
    assert "\n" not in str(caught.value)


def test_other_tasks_have_no_such_options():
    with pytest.raises(ConfigError, match="gsm8k has no options"):
        get_task("gsm8k", options={"judge": "math"})
    with pytest.raises(DataError, match="give --data FILE"):
        get_task("qa").load(None)
