from __future__ import annotations

import json

import pytest

from treeshare.errors import DataError
from treeshare.evals import Problem, PromptOptions, build_prompts
from treeshare.evals.sandbox import Limits, Verdict
from treeshare.tasks.code_contests import CodeContests

ROW = {
    "name": "1_A. Double",
    "description": (
        "Double it.\n\nInput\n\nOne integer.\n\nOutput\n\nTwice that.\n\n"
        "Example\n\nInput\n\n1\n\nOutput\n\n2\n"
    ),
    "public_tests": {"input": ["1\n"], "output": ["2\n"]},
    "private_tests": {"input": ["5"], "output": ["10"]},
    "generated_tests": {"input": ["9", "-1"], "output": ["18", "-2"]},
    "source": 2,
    "difficulty": 7,
    "solutions": {
        "language": [2, 3, 1],
        "solution": ["int main(){}", "print(2 * int(input()))\r\n", "print 1"],
    },
    "time_limit": {"seconds": 2, "nanos": 0},
    "memory_limit_bytes": 256000000,
    "cf_tags": ["math"],
}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "contests.jsonl"
    named = ROW | {"solutions": {"language": ["CPP", "PYTHON3"], "solution": ["x", "y"]}}
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(named))
    return path


def check(problem, completion, sandbox, **limits):
    result = CodeContests().check(problem, completion, sandbox, Limits(**limits))
    return result.verdict, result.passed_public


def test_problems_and_languages_by_number_and_by_name(data):
    first, second = CodeContests().load(data)
    assert (first.task_id, second.task_id) == ("1_A. Double", "1_A. Double#2")
    assert first.data["public"] == [["1\n", "2\n"]]
    assert first.data["hidden"] == [["5", "10"], ["9", "18"], ["-1", "-2"]]
    assert first.data["solutions"] == ["print(2 * int(input()))\n"]
    assert second.data["solutions"] == ["y"]
    json.dumps(dict(first.data))
    assert first.prompt.startswith("Double it.\n")
    assert first.prompt.endswith(
        "\n2\n\nA Python 3 program that reads standard input and prints the answer:\n```python\n"
    )
    other = Problem(task_id="other", prompt="Triple it.")
    built = build_prompts(CodeContests(), [other], PromptOptions(data=data, num_shots=1))
    assert built.texts() == [f"{first.prompt}print(2 * int(input()))\n```\n\nTriple it."]


def test_public_tests_filter_and_the_others_decide(data, sandbox):
    problem = CodeContests().load(data)[0]
    assert check(problem, "print(2 * int(input()))\n```\nnot code", sandbox) == (Verdict.PASSED, True)
    assert check(problem, "print(2)", sandbox) == (Verdict.WRONG_ANSWER, True)
    assert check(problem, "print(3)", sandbox) == (Verdict.WRONG_ANSWER, False)
    assert check(problem, "x = int(input())\nprint(2 * x if x > 0 else 1 / 0)", sandbox) == (
        Verdict.RUNTIME_ERROR,
        True,
    )
    assert check(problem, "while True: pass", sandbox, wall_s=1) == (Verdict.TIMEOUT, False)
    assert check(problem, "", sandbox) == (Verdict.WRONG_ANSWER, False)
    result = CodeContests().check(problem, "print(2)", sandbox, Limits())
    assert result.detail.startswith("test 2 of 4")


def test_outputs_are_compared_as_alphacodes_tester_does(tmp_path, sandbox):
    path = tmp_path / "contests.jsonl"
    plain = ROW | {"public_tests": {"input": ["1"], "output": ["Yes 0.5\n12 7\n"]}}
    several = plain | {"name": "s", "description": "Output\n\nPrint any of them."}
    close = plain | {"name": "t", "description": "Output\n\nThe relative error must not exceed 10^-2."}
    hidden = {"private_tests": {"input": [], "output": []}, "generated_tests": {"input": [], "output": []}}
    path.write_text("".join(json.dumps(row | hidden) + "\n" for row in (plain, several, close)))
    plain, several, close = CodeContests().load(path)
    program = "import sys\nsys.stdout.write({!r})".format
    for problem in (plain, several, close):
        assert check(problem, program("YES\r\n.500009\v12.0\n\n7."), sandbox) == (Verdict.PASSED, True)
        assert check(problem, program(""), sandbox) == (Verdict.WRONG_ANSWER, False)
    off = program("yes 0.5049 12 7")
    assert check(plain, off, sandbox) == (Verdict.WRONG_ANSWER, False)
    assert check(several, off, sandbox) == (Verdict.UNDECIDED, False)
    assert check(close, off, sandbox) == (Verdict.PASSED, True)
    assert check(close, program("yes 0.5 13 7"), sandbox) == (Verdict.WRONG_ANSWER, False)


def test_programs_that_behave_alike_share_a_signature(data, sandbox):
    problem = CodeContests().load(data)[0]

    def signature(completion):
        return CodeContests().check(problem, completion, sandbox, Limits()).signature

    double = signature("print(2 * int(input()))")
    assert double == signature("x = int(input())\nprint(x + x, end='')")
    assert double != signature("print(2)")
    assert signature("print(2)") == signature("print('2 ')")
    assert signature("print(3)") is None


def test_standard_input_is_a_file(data, sandbox):
    problem = CodeContests().load(data)[0]
    program = "import io, os\nprint(2 * int(io.BytesIO(os.read(0, os.fstat(0).st_size)).readline()))"
    assert check(problem, program, sandbox) == (Verdict.PASSED, True)


def test_without_public_tests_nothing_is_filtered(tmp_path, sandbox):
    path = tmp_path / "contests.jsonl"
    path.write_text(json.dumps(ROW | {"public_tests": {"input": [], "output": []}}))
    (problem,) = CodeContests().load(path)
    assert check(problem, "print(2 * int(input()))", sandbox) == (Verdict.PASSED, None)


def test_a_verdict_depends_on_which_tests_are_public(data):
    task = CodeContests()
    problem = task.load(data)[0]
    everything = [*problem.data["public"], *problem.data["hidden"]]
    other = Problem(
        task_id="x", prompt="", data=dict(problem.data) | {"public": everything[:2], "hidden": everything[2:]}
    )
    assert task.fingerprint(problem, "c", Limits()) != task.fingerprint(other, "c", Limits())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"public_tests": {"input": ["1"], "output": []}},
            "public_tests: Value error, 1 inputs and 0 outputs",
        ),
        ({"description": None}, "line 1, description: Input should be a valid string"),
        (
            {
                name: {"input": [], "output": []}
                for name in ("public_tests", "private_tests", "generated_tests")
            },
            "contains no problem with tests",
        ),
    ],
)
def test_bad_records_are_named(tmp_path, change, message):
    path = tmp_path / "contests.jsonl"
    path.write_text(json.dumps(ROW | change))
    with pytest.raises(DataError, match=message):
        CodeContests().load(path)


@pytest.mark.slow
def test_rows_as_the_library_gives_them(monkeypatch):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_list([ROW])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    (problem,) = CodeContests().load(None)
    assert problem.data["hidden"] == [["5", "10"], ["9", "18"], ["-1", "-2"]]
    assert len(CodeContests().shots(None, None)) == 1
