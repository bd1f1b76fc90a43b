from __future__ import annotations

import json

import pytest

from treeshare.errors import DataError
from treeshare.evals import PromptOptions, build_prompts
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.tasks.mbpp import Mbpp, MbppSanitized, MbppTest

FULL = [
    {
        "task_id": i,
        "text": f"Add {i}.",
        "code": f"def add(x):\r\n    return x + {i}",
        "test_setup_code": "",
        "test_list": [f"assert add(1) == {1 + i}", f"assert add(0) == {i}"],
        "challenge_test_list": [],
    }
    for i in (1, 2, 3, 4, 11, 511, 601)
]
SANITIZED = [
    {
        "source_file": "x",
        "task_id": 2,
        "prompt": "Take a root.",
        "code": "def root(x):\n  return x ** 0.5",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(root(4), 2)"],
    }
]


@pytest.fixture
def full(tmp_path):
    path = tmp_path / "mbpp.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in FULL))
    return path


def problem_of(path, number, task=None):
    task = task or Mbpp()
    return next(problem for problem in task.load(path) if problem.task_id == f"Mbpp/{number}")


def test_the_published_prompt(full):
    built = build_prompts(Mbpp(), [problem_of(full, 11)], PromptOptions(data=full))
    shot = (
        "You are an expert Python programmer, and here is your task: Add {0}. "
        "Your code should pass these tests:\n\n"
        "assert add(1) == {1}\nassert add(0) == {0}\n[BEGIN]\n"
    )
    expected = "".join(
        shot.format(i, 1 + i) + f"def add(x):\n    return x + {i}\n[DONE]\n\n" for i in (2, 3, 4)
    )
    assert built.texts() == [expected + shot.format(11, 12)]


def test_no_problem_sees_its_own_solution(full):
    problems = Mbpp().load(full)
    texts = build_prompts(Mbpp(), problems, PromptOptions(data=full)).texts()
    for row, text in zip(FULL, texts, strict=True):
        assert f"return x + {row['task_id']}\n" not in text
        assert text.count("[DONE]") == 3


def test_splits_and_other_shots(full):
    assert [p.task_id for p in MbppTest().load(full)] == ["Mbpp/11"]
    pool = [shot.task_id for shot in Mbpp().shots(full, None)]
    assert pool == ["Mbpp/2", "Mbpp/3", "Mbpp/4", "Mbpp/1", "Mbpp/601"]


def test_a_file_without_the_published_shots_is_refused_unless_zero_shot(tmp_path):
    path = tmp_path / "few.json"
    path.write_text(json.dumps(SANITIZED))
    problems = MbppSanitized().load(path)
    message = "few.json lacks the published worked examples, ids 3, 4; .* --shot-data, or --shots 0"
    with pytest.raises(DataError, match=message):
        build_prompts(MbppSanitized(), problems, PromptOptions(data=path))
    built = build_prompts(MbppSanitized(), problems, PromptOptions(data=path, num_shots=0))
    assert built.texts() == [problems[0].prompt]
    with pytest.raises(DataError, match="no problem of the test split"):
        MbppTest().load(path)


def test_verdicts(full, tmp_path, sandbox):
    task, problem = Mbpp(), problem_of(full, 11)

    def verdict(completion):
        return task.check(problem, completion, sandbox, Limits(wall_s=1.5)).verdict

    assert verdict("def add(x):\n    return x + 11\n[DONE]\nnonsense") is Verdict.PASSED
    assert verdict("def add(x):\n    return x + 12") is Verdict.WRONG_ANSWER
    assert verdict("") is Verdict.RUNTIME_ERROR
    assert verdict("def add(x):\n    return str(x)") is Verdict.WRONG_ANSWER
    assert verdict("def add(x):\n    return x / 0") is Verdict.RUNTIME_ERROR
    assert verdict("def add(x):\n    while True: pass") is Verdict.TIMEOUT


def test_what_tests_need_comes_after_the_code(tmp_path, sandbox):
    row = FULL[0] | {
        "code": "class Box:\r\n    n = 3",
        "test_setup_code": "box = Box()\r\nbox.n = 4",
        "test_list": ["assert box.n == 4"],
    }
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row))
    problem = problem_of(path, 1)
    assert Mbpp().check(problem, problem.data["solution"], sandbox, Limits()).passed
    path.write_text(json.dumps(SANITIZED))
    problem = problem_of(path, 2)
    assert MbppSanitized().check(problem, problem.data["solution"], sandbox, Limits()).passed


def test_a_chat_reply_is_its_last_block_that_the_tests_can_use(full):
    problem, task = problem_of(full, 11), Mbpp()
    code = "def add(x):\n    return x + 11\n"
    assert task.from_chat(problem, f"Sure:\n```python\n{code}```\nThen\n```\nadd(1)\n```") == code
    assert task.from_chat(problem, f"```py\n{code}") == code
    assert task.from_chat(problem, f"  ```\n{code}  ```") == code
    assert task.from_chat(problem, code) == code
    assert task.from_chat(problem, f"{code}```\nThat adds.") == code
    assert task.from_chat(problem, f"```\n{code}") == code
    assert task.from_chat(problem, "```python") == ""
