from __future__ import annotations

import json
import os

import pytest

from treeshare.cli.inputs import problems_sha256
from treeshare.errors import ConfigError, DataError
from treeshare.evals import PromptOptions, build_prompts
from treeshare.evals.sandbox import Limits
from treeshare.tasks.livecodebench import LiveCodeBench, lines_difference
from treeshare.tasks.preludes import before_livecodebench
from treeshare.tasks.private_tests import encode_tests
from treeshare.tasks.registry import get_task

STDIN = {"testtype": "stdin", "input": "2 3\n", "output": "5\n"}
ROW = {
    "question_title": "Sum",
    "question_content": "Add two numbers.",
    "platform": "atcoder",
    "question_id": "a",
    "contest_date": "2024-03-05T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": json.dumps([STDIN]),
    "private_test_cases": encode_tests([STDIN | {"input": "1 1\n", "output": "2\n"}]),
    "metadata": "{}",
}
CALL = ROW | {
    "question_id": "f",
    "platform": "leetcode",
    "difficulty": "hard",
    "contest_date": "2024-07-09T10:00:00",
    "starter_code": "class Solution:\n    def f(self, x, y):\n        ",
    "metadata": '{"func_name": "f"}',
    "public_test_cases": '[{"input": "[1, 2]\\nInfinity", "output": "[2, 1]", "testtype": "functional"}]',
    "private_test_cases": "",
}
SOLUTIONS = {
    "own_sum": "print(sum(map(int, input().split())))",
    "own_float": "print(int(input()) / 2)",
    "own_lines": "for i in range(int(input()), 0, -1):\n    print(i)",
    "own_blank": "print(input().replace('.', ''))",
    "own_fn": "class Solution:\n    def flip(self, pairs: List[List[int]]):\n"
    "        return [tuple(p[::-1]) for p in pairs]",
    "own_fn2": "class Solution:\n    def scale(self, x, k):\n        return x * k",
    "own_jsonpriv": "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split())))",
}


def written(tmp_path, *rows):
    path = tmp_path / "lcb.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_right_programs_pass_and_others_do_not(shared, sandbox):
    task = get_task("livecodebench")
    limits = Limits(wall_s=task.timeout_s)
    problems = task.load(shared("livecodebench/own_rows.jsonl"))
    assert {problem.task_id for problem in problems} == SOLUTIONS.keys()
    for problem in problems:
        reply = f"Sure.\n```python\n{SOLUTIONS[problem.task_id]}\n```\n"
        assert task.check(problem, task.from_chat(problem, reply), sandbox, limits).passed, problem.task_id
        wrong = SOLUTIONS[problem.task_id].replace("print(", "print(1, ").replace("return ", "return 1, ")
        assert str(task.check(problem, wrong, sandbox, limits).verdict) == "wrong answer"


def test_a_function_gets_its_arguments_infinity_too(tmp_path, sandbox):
    task = LiveCodeBench()
    (problem,) = task.load(written(tmp_path, CALL))
    right = "class Solution:\n    def f(self, x, y):\n        return x[::-1] if y == inf else y"
    assert task.check(problem, right, sandbox, Limits()).passed
    assert "class Solution" in task.program(problem, right)


def test_prompts_are_the_references(tmp_path):
    task = LiveCodeBench()
    plain, call = task.load(written(tmp_path, ROW, CALL))
    assert plain.prompt.endswith("### Question\nAdd two numbers.\n\n### Answer\n\n")
    assert call.prompt.endswith(
        "Add two numbers.\n\n### Starter Code\nclass Solution:\n    def f(self, x, y):\n        \n\n"
        "### Answer\n\n"
    )
    (asked,) = build_prompts(task, [plain], PromptOptions(chat=True)).texts()
    assert asked.startswith("### Question:\nAdd two numbers.\n\n### Format: Read the inputs from stdin")
    end = "### Answer: (use the provided format with backticks)\n\n"
    assert asked.endswith(f"```python\n# YOUR CODE HERE\n```\n\n{end}")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "af"),
        ({"difficulty": "easy"}, "a"),
        ({"difficulty": "hard, medium"}, "f"),
        ({"platform": "leetcode,codeforces"}, "f"),
        ({"start_date": "2024-03-05", "end_date": "2024-03-05"}, "a"),
        ({"start_date": "2024-03-06"}, "f"),
        ({"end_date": "2024-07-09"}, "af"),
    ],
)
def test_options_choose(tmp_path, options, expected):
    task = get_task("livecodebench", options=options)
    assert "".join(problem.task_id for problem in task.load(written(tmp_path, ROW, CALL))) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difficulty": "simple"}, "difficulty: got 'simple', expected easy, medium, hard"),
        ({"platform": ","}, "platform: got ''"),
        ({"start_date": "March"}, "start_date: got 'March', expected a day like"),
        ({"version": "v7"}, "version: got 'v7', expected release_v1"),
        ({"version": "v5_v4"}, "version: got 'v5_v4'"),
        ({"level": "3"}, "--task-option: got 'level', expected one of version, start_date"),
    ],
)
def test_options_that_are_none_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        get_task("livecodebench", options=options)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (ROW | {"public_test_cases": "[]", "private_test_cases": ""}, "a: no test"),
        (ROW | {"metadata": '{"func_name": "f"}'}, "its tests are not of the kind"),
        (ROW | {"metadata": "[]"}, "func_name is not the name"),
        (ROW | {"metadata": "{"}, "metadata: not JSON"),
        (ROW | {"contest_date": "x"}, "contest_date"),
        (ROW | {"private_test_cases": "@"}, "a, private_test_cases: neither JSON nor base64"),
        (
            CALL | {"public_test_cases": '[{"input": "x", "output": "1", "testtype": "functional"}]'},
            "input: not JSON",
        ),
        (
            CALL | {"public_test_cases": '[{"input": "1", "output": "", "testtype": "functional"}]'},
            "output: not JSON",
        ),
    ],
)
def test_damaged_rows_are_refused_when_they_are_loaded(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        LiveCodeBench().load(written(tmp_path, row))
    with pytest.raises(DataError, match="no problem that fits the options"):
        LiveCodeBench(difficulty="medium").load(written(tmp_path, ROW))
    with pytest.raises(ConfigError, match="leave it out with --data"):
        LiveCodeBench(version="v6").load(written(tmp_path, ROW))


def test_tests_are_read_again_from_the_file_unless_it_has_changed(tmp_path):
    path = written(tmp_path, ROW, CALL)
    before = LiveCodeBench().load(path)
    moved = path.rename(tmp_path / "moved.jsonl")
    assert problems_sha256(before) == problems_sha256(LiveCodeBench().load(moved))
    with pytest.raises(DataError, match="cannot read"):
        LiveCodeBench().tests(before[0])
    moved.rename(path)
    assert len(LiveCodeBench().tests(before[0]).cases) == 2
    path.write_text(path.read_text().replace("two", "six"))
    with pytest.raises(DataError, match="has changed since it was read"):
        LiveCodeBench().tests(before[1])
    assert os.listdir(tmp_path) == ["lcb.jsonl"]


@pytest.mark.parametrize(
    ("got", "expected", "right"),
    [
        ("5\n", "5", True),
        (" 1 2 \n3\n\n", "1 2\n3", True),
        ("1\n\n2", "1\n2", False),
        ("2.0", "2", True),
        ("0.50 1e1", "0.5 10", True),
        ("0.5000001", "0.5", False),
        ("1  2", "1 2", True),
        ("a  b", "a b", False),
        ("nan", "NaN", False),
        ("", "", True),
        ("", "1", False),
        ("yes", "Yes", False),
    ],
)
def test_printed_text_is_compared_as_by_the_reference(got, expected, right):
    assert (lines_difference(got, expected, "") is None) == right


def test_the_graders_imports_stand_in_front_where_a_name_asks_for_one():
    assert before_livecodebench("print(1)") == "import sys\nsys.setrecursionlimit(50000)\nprint(1)"
    text = before_livecodebench("from __future__ import annotations\nprint(Counter(input()), pow(2, 3, 5))")
    assert text.startswith("from __future__ import annotations\nfrom string import *\n")
    assert "from builtins import *\nfrom typing import *\n" in text
