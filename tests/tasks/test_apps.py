from __future__ import annotations

import json
import math
import sys
import textwrap
import types

import pytest

from treeshare.errors import DataError
from treeshare.evals import Problem, PromptOptions, build_prompts
from treeshare.evals.sandbox import Limits, Sandbox, Verdict
from treeshare.evals.sandbox.base import Execution
from treeshare.tasks.apps import Apps, AppsCompetition, AppsInterview, AppsIntroductory

STDIN = {
    "problem_id": 7,
    "question": "Double every number.",
    "solutions": json.dumps(["print(2 * int(input()))\n"]),
    "input_output": json.dumps({"inputs": ["1\n", ["2"], "30\n"], "outputs": ["2\n", ["4"], 60]}),
    "difficulty": "introductory",
    "url": "",
    "starter_code": "",
}
METHOD = {
    "id": 8,
    "question": "Sort the list.",
    "solutions": "",
    "input_output": json.dumps(
        {"fn_name": "order", "inputs": [[[2, 1]], [[3]], [[]]], "outputs": [[[1, 2]], [3], [[]]]}
    ),
    "difficulty": "interview",
    "starter_code": "class Solution:\n    def order(self, x: List[int]) -> List[int]:\n",
}
PAIR = METHOD | {
    "id": 9,
    "input_output": json.dumps({"fn_name": "swap", "inputs": [[1, 2]], "outputs": [[[2, 1]]]}),
    "starter_code": "def swap(a, b):\n\t",
    "difficulty": "competition",
}
UNTESTED = STDIN | {"problem_id": 10, "input_output": ""}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "apps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (STDIN, METHOD, PAIR, UNTESTED)))
    return path


def check(problem, completion, sandbox, **limits):
    return Apps().check(problem, completion, sandbox, Limits(**limits))


def test_difficulties_and_problems_without_tests(data, tmp_path):
    def ids(task):
        return [problem.task_id for problem in task.load(data)]

    assert ids(Apps()) == ["APPS/7", "APPS/8", "APPS/9"]
    assert ids(AppsIntroductory()) == ["APPS/7"]
    assert ids(AppsInterview()) == ["APPS/8"]
    assert ids(AppsCompetition()) == ["APPS/9"]
    data.write_text(json.dumps(STDIN))
    with pytest.raises(DataError, match="contains no interview problem with tests"):
        AppsInterview().load(data)


def test_the_published_prompt(data):
    stdin, method, _ = Apps().load(data)
    assert stdin.prompt == "\nQUESTION:\nDouble every number.\nUse Standard Input format\nANSWER:\n"
    assert method.prompt == (
        "\nQUESTION:\nSort the list.\nclass Solution:\n    def order(self, x: List[int]) -> List[int]:\n"
        "\nUse Call-Based format\nANSWER:\n"
    )
    built = build_prompts(Apps(), [method], PromptOptions(data=data, num_shots=1))
    assert built.texts() == [f"{stdin.prompt}print(2 * int(input()))\n\n{method.prompt}"]


def test_programs_that_read_stdin(data, sandbox):
    problem = Apps().load(data)[0]
    assert check(problem, "print(2 * int(input()))", sandbox).passed
    assert check(
        problem, "import os, sys\nassert os.fstat(0).st_size\nprint(2 * int(sys.stdin.read()))", sandbox
    ).passed
    wrong = check(problem, "x = int(input())\nprint(2 * x if x < 30 else 0)", sandbox)
    assert wrong.verdict is Verdict.WRONG_ANSWER
    assert wrong.detail.startswith("test 3 of 3")
    assert check(problem, "print('2.0')", sandbox).verdict is Verdict.WRONG_ANSWER
    assert check(problem, "print(int(input()) / 0)", sandbox).verdict is Verdict.RUNTIME_ERROR
    assert check(problem, "while True: pass", sandbox, wall_s=1).verdict is Verdict.TIMEOUT


def test_functions_and_methods_that_are_called(data, sandbox):
    _, method, pair = Apps().load(data)
    in_class = "class Solution:\n    def order(self, x: List[int]) -> List[int]:\n        return sorted(x)\n"
    plain = "def order(x):\n    return sorted(x)\n"
    single = "def order(x):\n    return x[0] if len(x) == 1 else sorted(x)\n"
    for right in (in_class, plain, single):
        assert check(method, right, sandbox).passed
    assert check(method, "def order(x):\n    return x\n", sandbox).verdict is Verdict.WRONG_ANSWER
    assert check(method, "def order(x):\n    return str(x)\n", sandbox).verdict is Verdict.WRONG_ANSWER
    assert check(method, "def other(x):\n    return x\n", sandbox).verdict is Verdict.RUNTIME_ERROR
    assert check(pair, "def swap(a, b):\n\treturn b, a\n", sandbox).passed
    future = "from __future__ import annotations\ndef swap(a, b):\n    return [b, a]\n"
    assert check(pair, future, sandbox).passed


def returned(program, expected, sandbox, args=(0,)):
    tests = {"fn_name": "f", "inputs": [list(args)], "outputs": [expected]}
    problem = Problem(task_id="p", prompt="", data={"tests": tests, "statement": ""})
    return check(problem, f"def f(x, *more):\n{textwrap.indent(program, '    ')}\n", sandbox)


RETURNED = [
    ("return np.int64(4)", 4, True),
    ("return np.sum(np.array([2, 2]))", [4], True),
    (
        "return {'sum': np.sum([1, 2]), 'all': (np.bool_(1), [np.float32(0.5)])}",
        {"sum": 3, "all": [True, [0.5]]},
        True,
    ),
    ("return np.array([4])", [4], True),
    ("return np.array([4, 5])", [[4, 5]], False),
    ("return fractions.Fraction(8, 2)", 4, True),
    ("return fractions.Fraction(1, 10)", 0.1, False),
    ("import decimal\nreturn [decimal.Decimal('2.50')]", [2.5], True),
    ("return True", 1, True),
    ("return 1", True, True),
    ("return False", 1, False),
    ("return 4 + 0j", 4, True),
    ("return -0.0", 0, True),
    ("return math.inf", math.inf, True),
    ("return math.nan", math.nan, False),
    ("return b'a'", "a", False),
    ("return {1, 2}", [1, 2], False),
    ("return ((1, (2,)),)", [[[1, [2]]]], True),
    ("return collections.OrderedDict(a=deque())", {"a": []}, False),
    ("return type('E', (list,), {'__eq__': lambda *_: True})([3])", [[4]], False),
    ("return type('E', (dict,), {'__eq__': lambda *_: True})()", [{"a": 1}], False),
    ("return type('E', (str,), {'__eq__': lambda *_: True})('b')", "a", False),
    ("return type('E', (float,), {'__eq__': lambda *_: True})(2.5)", 2.25, False),
    ("return type('E', (), {'__eq__': lambda *_: True, '__int__': lambda _: 1 / 0})()", 4, False),
    (
        "import numbers\nE = type('E', (), {'__int__': int})\nnumbers.Integral.register(E)\nreturn E()",
        4,
        False,
    ),
    ("sys.modules['numpy'] = sys.modules['decimal'] = 3\nreturn object()", 4, False),
    ("import json\njson.dumps = lambda _: '[' * 99_999\nreturn 4", 5, False),
    ("x = []\nx.append(x)\nreturn x", [[1]], False),
]


@pytest.mark.parametrize(("program", "expected", "right"), RETURNED)
def test_returned_values_equal_as_for_the_grader(sandbox, program, expected, right):
    """And what an object says of itself is not asked."""
    result = returned(program, expected, sandbox)
    assert result.verdict is (Verdict.PASSED if right else Verdict.WRONG_ANSWER), result


def test_integer_keys_of_a_dictionary_in_front_come_back(sandbox):
    """As in the grader; elsewhere keys are text. In what is returned an integer is as good as its text."""
    given = [{"1": 2, "-3": 4}, {"5": 6}]
    assert returned("return {k + 1: v for k, v in x.items()}", [{"2": 2, "-2": 4}], sandbox, given).passed
    assert returned("return {k: x for k in more[0]}", {"5": {"1": 2, "-3": 4}}, sandbox, given).passed
    assert returned("return list(x)", ["a", "1"], sandbox, [{"a": 2, "1": 3}]).passed
    assert not returned("return {k + 1: v for k, v in x.items()}", [{"1": 2, "-3": 4}], sandbox, given).passed


def test_programs_that_read_find_the_graders_imports(data, sandbox):
    problem = Apps().load(data)[0]
    right = "from __future__ import annotations\nprint(floor(2 * math.fabs(int(sys.stdin.readline()))))"
    assert check(problem, right, sandbox).passed
    assert "import math" in Apps().solution(problem, right)
    assert check(problem, "print(2 * int(stdin.read()))", sandbox).passed
    assert (
        check(problem, "print(2 * int(decimal.Decimal(input())))", sandbox).verdict is Verdict.RUNTIME_ERROR
    )


class Returned(Sandbox):
    """Stands for a program that has returned this text."""

    name = "returned"

    def __init__(self, value):
        self._value = value

    def run(self, program, **_):
        return Execution(
            verdict=Verdict.PASSED,
            detail="",
            exit_code=0,
            stdout=b"",
            stderr=b"",
            value=self._value,
            wall_s=0.0,
        )

    def close(self):
        """Nothing runs."""


@pytest.mark.parametrize("front", ["[", '{"a":', '[{"a":', '{"$tuple":[', '{"$dict":[[1,', '{"$array":'])
@pytest.mark.parametrize("expected", [7, [[1]], {"a": {"a": "text"}}])
def test_a_value_of_any_depth_gets_a_verdict(front, expected):
    """Where the stack is deep already, too."""
    back = "".join({"[": "]", "{": "}"}[c] for c in reversed(front) if c in "[{")
    tests = {"fn_name": "f", "inputs": [[0]], "outputs": [expected]}
    problem = Problem(task_id="p", prompt="", data={"tests": tests, "statement": ""})

    def verdict(value, frames):
        return verdict(value, frames - 1) if frames else check(problem, "", Returned(value)).verdict

    for depth in [*range(1, 1100, 23), *range(290, 310), 9_999]:
        for frames in (0, 300):
            assert verdict(front * depth + "0" + back * depth, frames) is Verdict.WRONG_ANSWER, depth
    assert check(problem, "", Returned(json.dumps(expected))).passed


def test_several_right_answers_are_undecided_and_tolerances_hold(tmp_path, sandbox):
    path = tmp_path / "apps.jsonl"
    several = STDIN | {"question": "-----Output-----\nPrint any of them.\n"}
    close = STDIN | {
        "problem_id": 11,
        "question": "-----Output-----\nThe absolute error is at most 10^{-2}.\n",
    }
    path.write_text(json.dumps(several) + "\n" + json.dumps(close))
    any_of, near = Apps().load(path)
    assert check(any_of, "print(2 * int(input()))", sandbox).passed
    assert check(any_of, "print(5)", sandbox).verdict is Verdict.UNDECIDED
    assert check(any_of, "1 / 0", sandbox).verdict is Verdict.RUNTIME_ERROR
    assert check(near, "print(2 * int(input()) + 0.009)", sandbox).passed
    assert check(near, "print(2 * int(input()) + 0.1)", sandbox).verdict is Verdict.WRONG_ANSWER


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("{", "problem 7, input_output: not JSON inside a string"),
        ("[1]", "problem 7, input_output: got a list, expected a dict"),
        ('{"inputs": ["1"], "outputs": []}', "inputs and outputs are not lists of one length"),
        ('{"inputs": "1", "outputs": "2"}', "inputs and outputs are not lists of one length"),
        ('{"inputs": ["1"], "outputs": ["2"], "fn_name": 3}', "fn_name is not the name of a function"),
        ('{"inputs": [[1]], "outputs": ["2"], "fn_name": "f()"}', "fn_name is not the name of a function"),
        ('{"inputs": ["1"], "outputs": ["2"], "fn_name": "f"}', "not lists of arguments"),
        (
            '{"inputs": [[1]], "outputs": [' + "[" * 400 + "]" * 400 + '], "fn_name": "f"}',
            "holds a value nested deeper than 300 levels",
        ),
        ('{"inputs": ["1"], "outputs": [' + "[" * 9999 + "]" * 9999 + "]}", "not JSON inside a string"),
    ],
)
def test_bad_tests_are_named(tmp_path, tests, message):
    path = tmp_path / "apps.jsonl"
    path.write_text(json.dumps(STDIN | {"input_output": tests}))
    with pytest.raises(DataError, match=message):
        Apps().load(path)


def test_from_the_hub_as_files(monkeypatch):
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs["data_files"]))
        return [METHOD]

    fake = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", fake)
    assert [problem.task_id for problem in Apps().load(None)] == ["APPS/8"]
    assert Apps().shots(None, None) == []
    place = "hf://datasets/codeparrot/apps/"
    assert asked == [(("json",), f"{place}test.jsonl"), (("json",), f"{place}train.jsonl")]


def test_the_local_problems_accept_their_own_outputs_only(shared, sandbox):
    problems = Apps().load(shared("apps/apps_stdin52.jsonl"))
    assert len(problems) == len({problem.task_id for problem in problems}) == 52
    assert [p.task_id for p in problems if "#" in p.task_id] == ["APPS/1604#2", "APPS/1604#3", "APPS/2060#2"]
    assert len(AppsCompetition().load(shared("apps/apps_stdin52.jsonl"))) == 48
    for problem in problems:
        tests = Apps().tests(problem)
        matcher = tests.matcher
        for case in tests.cases:
            assert matcher.difference(case.expected, case.expected, case.stdin) is None
            assert matcher.difference(case.expected + "\nx", case.expected, case.stdin) is not None
    problem = problems[0]
    pairs = {case.stdin: case.expected for case in Apps().tests(problem).cases}
    known = f"import sys\nprint({pairs!r}[sys.stdin.read()])"
    assert check(problem, known, sandbox).passed
