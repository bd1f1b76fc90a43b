"""HumanEval+ and MBPP+ are proved by their own data: right ones pass, mutated ones and cheats do not.

By default a few problems of each set, the mended ones among them; the whole sets are slow tests.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.tasks.test_references import assert_all_pass, off_by_one, verdicts
from treeshare.evals import PromptOptions, build_prompts
from treeshare.evals.sandbox import Limits
from treeshare.tasks import evalplus
from treeshare.tasks.humaneval_plus import HumanEvalPlus
from treeshare.tasks.mbpp_plus import MbppPlus
from treeshare.tasks.registry import get_task

HUMANEVAL, MBPP = "humaneval_plus/HumanEvalPlus-OriginFmt.jsonl.gz", "mbpp_plus/MbppPlus-OriginFmt.jsonl.gz"
LIMITS = Limits(wall_s=evalplus.TIMEOUT_S)
FEW = {"humaneval-plus": [1, 32, 38], "mbpp-plus": [0, 53, 371]}
"""Places: of HumanEval/32 with its mended test, of Mbpp/88 and 737 with their own ways to compare."""

OFF_BY_ONE_DEFINED = """
_names = [name for name, value in list(globals().items()) if callable(value)]
def _changed(function):
    def changed(*args):
        value = function(*args)
        return value + 1 if type(value) is int else value + "1" if type(value) is str else [value, 1]
    return changed
for _name in _names:
    if type(globals()[_name]).__name__ == "function":
        globals()[_name] = _changed(globals()[_name])
"""
"""After right functions of any names: each returns something else."""


def solution(problem):
    return problem.data.get("canonical_solution") or problem.data["solution"]


def mutated(name):
    if name == "humaneval-plus":
        return [lambda problem: "    pass\n", off_by_one]
    return [
        lambda problem: solution(problem) + "\nraise ValueError('mutated')\n",
        lambda problem: solution(problem) + OFF_BY_ONE_DEFINED,
    ]


@pytest.mark.parametrize(("name", "file"), [("humaneval-plus", HUMANEVAL), ("mbpp-plus", MBPP)])
def test_some_of(shared, sandbox, name, file):
    assert_all_pass(verdicts(name, shared(file), sandbox, solution, FEW[name], LIMITS), len(FEW[name]))
    for change in mutated(name):
        results = verdicts(name, shared(file), sandbox, change, FEW[name][:2], LIMITS)
        assert not any(result.passed for result in results.values())


WHOLE = pytest.mark.parametrize(
    ("name", "file", "size"), [("humaneval-plus", HUMANEVAL, 164), ("mbpp-plus", MBPP, 378)]
)
PARTS = 4
"""Of a whole set, so that each is run within minutes."""


@pytest.mark.slow
@WHOLE
@pytest.mark.parametrize("part", range(PARTS))
def test_all_of(shared, sandbox, name, file, size, part):
    places = range(part, size, PARTS)
    assert_all_pass(verdicts(name, shared(file), sandbox, solution, places, LIMITS), len(places))


@pytest.mark.slow
@WHOLE
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("which", [0, 1])
def test_all_mutated_ones_fail(shared, sandbox, name, file, size, part, which):
    places = range(part, size, PARTS)
    results = verdicts(name, shared(file), sandbox, mutated(name)[which], places, LIMITS)
    assert len(results) == len(places)
    assert {task_id for task_id, result in results.items() if result.passed} == set()


CHEATS = {
    "empties its argument": "def {name}(values, *rest):\n    values.clear()\n    return {{}}\n",
    "equals everything": (
        "class Same:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "    __hash__ = None\n    def __array__(self, *a, **k): return self\n"
        "    def __array_ufunc__(self, *a, **k): return True\n"
        "    def __array_function__(self, *a, **k): return True\n"
        "    def __float__(self): return 0.0\n    def __len__(self): return 1\n"
        "    def __iter__(self): return iter([self])\n"
        "def {name}(*args):\n    return Same()\n"
    ),
    "is no number": "def {name}(*args):\n    return float('nan')\n",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_cheats_do_not_pass(shared, sandbox, cheat):
    """On a test with floats, on the mended one, and on one whose answers are computed from the arguments."""
    for task, file, task_id, name in (
        (HumanEvalPlus(), HUMANEVAL, "HumanEval/4", "mean_absolute_deviation"),
        (HumanEvalPlus(), HUMANEVAL, "HumanEval/32", "find_zero"),
        (MbppPlus(), MBPP, "Mbpp/88", "freq_count"),
    ):
        (problem,) = [one for one in task.load(shared(file)) if one.task_id == task_id]
        if task_id == "Mbpp/88":  # the plus tests alone: the asserts would fail it first
            problem = replace(problem, data={**problem.data, "base": ""})
        code = "\n" + CHEATS[cheat].format(name=name)
        assert not task.check(problem, code, sandbox, LIMITS).passed, task_id


def test_prompts_are_evalplus_own(shared):
    task = get_task("mbpp-plus")
    problem = task.load(shared(MBPP))[0]
    assert problem.prompt == (
        '"""\nWrite a function to find the shared elements from the given two lists.\n'
        'assert set(similar_elements((3, 4, 5, 6),(5, 7, 4, 10))) == set((4, 5))\n"""\n'
    )
    (asked,) = build_prompts(task, [problem], PromptOptions(chat=True)).texts()
    assert asked == (
        "Please provide a self-contained Python script that solves the following problem in a markdown code "
        f"block:\n```\n{problem.prompt.strip()}\n```\n"
    )
    reply = f"{task.chat_prefill}def similar_elements(a, b):\n    return ()\n```\nDone."
    assert task.from_chat(problem, reply) == "def similar_elements(a, b):\n    return ()\n"


def test_plus_counts_only_if_base_passes(shared, sandbox):
    problem = get_task("mbpp-plus").load(shared(MBPP))[0]
    assert get_task("mbpp-plus").check(problem, solution(problem), sandbox, LIMITS).passed
    stricter = replace(
        problem, data={**problem.data, "base": "assert similar_elements((1,), (1,)) == (2,)\n"}
    )
    assert not get_task("mbpp-plus").check(stricter, solution(problem), sandbox, LIMITS).passed


def test_slow_problems_get_more_time():
    task = HumanEvalPlus()
    problem = replace(_problem(), task_id="HumanEval/130")
    assert task.limits(problem, LIMITS).wall_s == 5 * LIMITS.wall_s
    assert task.limits(replace(problem, task_id="HumanEval/0"), LIMITS).wall_s == LIMITS.wall_s


def _problem():
    from treeshare.evals import Problem

    return Problem(task_id="p", prompt="")
