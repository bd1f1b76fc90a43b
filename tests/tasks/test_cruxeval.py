from __future__ import annotations

import gzip
import json

import pytest

from treeshare.errors import DataError
from treeshare.evals.literals import NoLiteralError, canonical, literal
from treeshare.tasks.cruxeval import CruxEvalOutput, CruxEvalOutputCot, difference, prediction

CODE = {"id": "s", "code": "def f(x):\n    return x", "input": "{1, 2}", "output": "{1, 2}"}


def loaded(tmp_path, row):
    path = tmp_path / "crux.jsonl"
    path.write_text(json.dumps(row))
    return CruxEvalOutput().load(path)


def test_the_references_verdict_in_every_graded_generation(shared):
    task = CruxEvalOutput()
    problems = {problem.task_id: problem for problem in task.load(shared("cruxeval/cruxeval.jsonl"))}
    graded = json.loads(
        gzip.decompress(shared("cruxeval/scored_codellama-7b_temp0.2_output.json.gz").read_bytes())
    )
    right = total = 0
    for task_id, generations in graded["raw_generations"].items():
        data = problems[task_id].data
        verdicts = graded["raw_scored_generations"][task_id]
        found = [difference(text, data["input"], data["output"]) is None for text in generations]
        assert found == verdicts, task_id
        right, total = right + sum(found), total + len(found)
    assert total == 8000
    assert right / total == pytest.approx(0.342125)


def test_prompts_are_the_references(shared):
    problem = CruxEvalOutput().load(shared("cruxeval/cruxeval.jsonl"))[135]
    assert problem.prompt.startswith("You are given a Python function and an assertion containing an input")
    assert problem.prompt.endswith("\nassert f() == ??\n[/PYTHON]\n[ANSWER]\n")
    assert (
        CruxEvalOutputCot()
        .load(shared("cruxeval/cruxeval.jsonl"))[0]
        .prompt.endswith("\nassert f([1, 1, 3, 1, 3, 1]) == ??\n[/PYTHON]\n[THOUGHT]\n")
    )


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('assert f("a") == "b"\n', '"b"'),
        ("assert f(1) == 2 == 3", "2"),
        (" 5 ", "5"),
        ("1. So.\n[/THOUGHT]\n[ANSWER]\nassert f(1) == [2,\n 3]\n", "[2,\n 3]"),
        ("[ANSWER]assert f(1) == 2[/ANSWER] == 4", "2"),
        ("", None),
        ("assert f(1) ==", None),
    ],
)
def test_what_is_predicted(completion, expected):
    assert prediction(completion) == expected


def test_verdicts_and_votes(tmp_path):
    task = CruxEvalOutput()
    (problem,) = loaded(tmp_path, CODE)

    def check(text):
        return task.check(problem, text, None, None)

    assert check("assert f({1, 2}) == {2, 1}").passed
    assert check("assert f({1, 2}) == {2, 1.0}").passed
    assert "answered [1, 2], expected " in check("== [1, 2]").detail
    assert check("== f({1, 2})").detail == "the answer repeats the call"
    assert check("== set([1, 2])").detail == "no literal: it calculates or calls"
    assert check("").detail == "no answer found"
    assert task.answer(problem, "== {'b': 1, 'a': {2, 1}}") == task.answer(
        problem, "== {'a': {1, 2}, 'b': True}"
    )
    assert task.answer(problem, "== g()") is None
    reply = "<think>[ANSWER] no</think>First [ANSWER]f(1) == 3[/ANSWER], no:\n[ANSWER]\nassert f({1, 2}) == "
    reply += "{1, 2}\n[/ANSWER]"
    assert check(task.from_chat(problem, reply)).passed


def test_an_output_that_is_no_literal_is_refused(tmp_path):
    with pytest.raises(DataError, match="s, output: no literal"):
        loaded(tmp_path, CODE | {"output": "g()"})


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "1; 2",
        "x = 1",
        "__import__('os')",
        "'a' * 3",
        "[" * 5000 + "]" * 5000,
        "-" * 15_000 + "1",
        "1" * 5000,
        "9**9**9",
        "f'{1}'",
        "{[]: 1}",
        "(lambda: 1)()",
        "1" * 30_000,
        "\x00",
        "",
    ],
    ids=lambda text: text[:12],
)
def test_hostile_text_is_no_literal(text):
    with pytest.raises(NoLiteralError):
        literal(text)


def test_one_form_for_equal_values():
    assert canonical(literal("[1.0, True, (2,), {3: {'b', 'a'}}, 1+0j]")) == canonical(
        literal("[1, 1, (2.0,), {3: {'a', 'b'}}, 1]")
    )
    assert canonical([]) != canonical(()) != canonical({})
    assert canonical("1") != canonical(1)
