"""Integers beyond 4,300 digits, which Python refuses to read and write: in every place where they can be."""

from __future__ import annotations

import json
import sys

import pytest

from treeshare.cli.inputs import problems_sha256
from treeshare.errors import DataError
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.tasks.apps import Apps
from treeshare.tasks.code_contests import CodeContests
from treeshare.tasks.humaneval import HumanEval
from treeshare.tasks.mbpp import Mbpp

ONES, TWOS = "1" * 6001, "2" * 6001
APPS = {"problem_id": 1, "question": "?"}
CALL = APPS | {"input_output": f'{{"fn_name": "f", "inputs": [[[{ONES}, -4]]], "outputs": [[[{TWOS}, -8]]]}}'}
PRINTED = APPS | {
    "input_output": f'{{"inputs": [{ONES}, [{ONES}, 4]], "outputs": ["{TWOS}", [{TWOS}, [{TWOS}, "a"]]]}}'
}
CONTEST = {
    "name": "c",
    "description": "Output\n\nWith a relative error of 10^-3.",
    "public_tests": {"input": [f"{ONES}\n"], "output": [f"{TWOS} 0.5\n"]},
}
HUMAN = {
    "task_id": "H/1",
    "entry_point": "f",
    "prompt": "def f(x):\n",
    "test": f"def check(candidate):\n    assert candidate(int('{ONES}')) == int('{TWOS}')\n",
}
MBPP = {"task_id": 1, "text": "?", "code": "", "test_list": [f"assert f(int('{ONES}')) == int('{TWOS}')"]}
BODY = "    return [2 * v for v in x] if isinstance(x, list) else 2 * x\n"
FUNCTION = "def f(x):\n" + BODY


@pytest.fixture(autouse=True)
def the_limit_stands():
    """It is the process's own setting: nobody may change it on the way."""
    before = sys.get_int_max_str_digits()
    yield
    assert sys.get_int_max_str_digits() == before == 4300


def load(task, tmp_path, record, form="{}\n"):
    path = tmp_path / "data.json"
    path.write_text(form.format(record if isinstance(record, str) else json.dumps(record)))
    return task.load(path)[0]


@pytest.mark.parametrize("record", [CALL, PRINTED])
@pytest.mark.parametrize("form", ["{}\n", "[{}]"])
def test_the_data_loads_and_is_told_apart(tmp_path, record, form):
    problem = load(Apps(), tmp_path, record, form)
    other = load(Apps(), tmp_path, json.loads(json.dumps(record).replace(TWOS, TWOS[:-1] + "3")))
    assert problems_sha256([problem]) == problems_sha256([load(Apps(), tmp_path, record)])
    assert problems_sha256([problem]) != problems_sha256([other])
    prints = [Apps().fingerprint(one, "x", Limits()) for one in (problem, other)]
    assert prints[0] != prints[1]


def test_numbers_that_are_printed_and_read(tmp_path):
    first, second = Apps().tests(load(Apps(), tmp_path, PRINTED)).cases
    assert (first.stdin, first.expected) == (ONES, TWOS)
    assert (second.stdin, second.expected) == (f"{ONES}\n4", f"{TWOS}\n[{TWOS}, 'a']")


@pytest.mark.parametrize(
    ("task", "record"), [(Apps(), CALL), (CodeContests(), CONTEST), (HumanEval(), HUMAN), (Mbpp(), MBPP)]
)
def test_in_a_field_that_nobody_reads(tmp_path, task, record):
    text = f'{{"checksum": {ONES}, {json.dumps(record)[1:]}'
    assert load(task, tmp_path, text).prompt == load(task, tmp_path, record).prompt


def test_as_an_id(tmp_path):
    text = json.dumps(CALL).replace('"problem_id": 1', f'"problem_id": {ONES}')
    with pytest.raises(
        DataError, match="line 1, problem_id: an integer of about 6000 digits, expected at most"
    ):
        load(Apps(), tmp_path, text)


@pytest.mark.parametrize(
    ("task", "record", "right", "wrong"),
    [
        (Apps(), CALL, FUNCTION, FUNCTION.replace("2 * v", "2 * v + (v > 0)")),
        (Apps(), CALL, FUNCTION, FUNCTION.replace("2 * v", "2 * abs(v)")),
        (Apps(), CALL, FUNCTION, FUNCTION.replace("2 * v", "float(v % 7)")),
        (CodeContests(), CONTEST, "print(2 * int(input()), 0.5001)", "print(2 * int(input()) + 1, 0.5)"),
        (CodeContests(), CONTEST, "print(f'{2 * int(input())}.0e0'[:-4], .5)", "print('3' * 6001, 0.5)"),
        (CodeContests(), CONTEST, "print(2 * int(input()), '+.5')", "print('2' * 5000, 0.5)"),
        (HumanEval(), HUMAN, BODY, BODY.replace("2 * x", "2 * x + 1")),
        (Mbpp(), MBPP, FUNCTION, FUNCTION.replace("2 * x", "2 * x + 1")),
    ],
)
def test_right_passes_and_wrong_fails(tmp_path, sandbox, task, record, right, wrong):
    problem = load(task, tmp_path, record)
    assert task.check(problem, right, sandbox, Limits()).passed
    result = task.check(problem, wrong, sandbox, Limits())
    assert result.verdict is Verdict.WRONG_ANSWER
    assert "Exceeds" not in result.detail
    assert len(result.detail) < 300
