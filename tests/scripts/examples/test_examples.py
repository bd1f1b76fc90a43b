"""The example scripts on a tiny random model: their answers are nonsense, their tables are not."""

from __future__ import annotations

import ast
import json
import warnings

import pytest

from tests.cli.conftest import cli
from tests.evals.conftest import any_sandbox
from tests.evals.tiny_text import save_text_model
from tests.scripts.loading import EXAMPLES, load_script
from treeshare.evals.sandbox import Limits
from treeshare.tasks.registry import get_task

__all__ = ["any_sandbox", "cli"]

CONTEST = {
    "name": "double",
    "description": "Double it.",
    "public_tests": {"input": ["1"], "output": ["2"]},
    "private_tests": {"input": ["5"], "output": ["10"]},
    "generated_tests": {"input": ["9"], "output": ["18"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def gsm8k(tmp_path):
    return written(
        tmp_path, [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(3)]
    )


def written(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(name, *arguments):
    return load_script(EXAMPLES, name).main([str(argument) for argument in arguments])


def table(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_competitive_programming(any_sandbox, model, tmp_path, capsys, monkeypatch):
    """Three programs of a model that knows the answer, one of one that does not."""
    from treeshare import LLM

    generate = LLM.generate

    def answered(llm, prompts, params):
        outputs = generate(llm, prompts, params)
        for place, completion in enumerate(outputs[0].outputs):
            object.__setattr__(
                completion, "text", "print(3)" if place == 0 else "print(2 * int(input()))" + " " * place
            )
        return outputs

    monkeypatch.setattr(LLM, "generate", answered)
    data = written(tmp_path, [CONTEST, CONTEST | {"name": "again"}])
    arguments = ["--data", data, "--model", model, "--limit", 2, "-n", 4, "--max-tokens", 4]
    assert run("competitive_programming", *arguments) == 0
    right, nonsense = table(capsys.readouterr().out)
    assert right == ["double", "3 of 4", "1", "3", "1.000"]
    assert nonsense == ["again", "0 of 4", "0", "0", "0.000"]


def test_self_consistency(model, gsm8k, capsys):
    arguments = ["--data", gsm8k, "--model", model, "--limit", 2, "-n", 3, "--max-tokens", 6]
    assert run("self_consistency", *arguments) == 0
    rows = table(capsys.readouterr().out)
    assert [row[:2] for row in rows] == [["gsm8k/0", "0"], ["gsm8k/1", "2"], ["mean", ""]]
    assert all(0 <= float(value) <= 1 for row in rows for value in row[3:])


def test_self_consistency_counts_the_majority(model, gsm8k, capsys, monkeypatch):
    from treeshare import LLM

    generate = LLM.generate

    def answered(llm, prompts, params):
        outputs = generate(llm, prompts, params)
        for completion, text in zip(outputs[1].outputs, ("2", "2", "7"), strict=True):
            object.__setattr__(completion, "text", f"The answer is {text}.")
        return outputs

    monkeypatch.setattr(LLM, "generate", answered)
    run("self_consistency", "--data", gsm8k, "--model", model, "--limit", 2, "-n", 3, "--max-tokens", 6)
    assert table(capsys.readouterr().out)[1] == ["gsm8k/1", "2", "2", "0.667", "1.000"]


@pytest.mark.parametrize("name", ["competitive_programming", "self_consistency"])
def test_a_users_mistake_is_one_line(name, any_sandbox, tmp_path, capsys):
    assert run(name, "--data", tmp_path / "missing") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"{name}: data: cannot read")
    assert error.count("\n") == 1


def test_a_task_in_twenty_lines(cli, model, tmp_path):
    path = EXAMPLES / "custom_task.py"
    kinds = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    assert [kind.name for kind in kinds] == ["Functions", "Sums", "Capitals"]
    for kind in kinds:
        lines = path.read_text().splitlines()[kind.lineno - 1 : kind.end_lineno]
        assert len([line for line in lines if line.strip()]) <= 20
    task, out = f"{path}:Sums", tmp_path / "run"
    data = tmp_path / "sums.txt"
    data.write_text("1 + 2\n3 + 4\n5 + 6\n")
    arguments = ["--task", task, "--data", data, "--model", model, "--limit", 2, "-n", 3, "--out", out]
    assert cli("sample", *arguments, "--threads", 1).status == 0
    result = cli("evaluate", out, "--task", task)
    assert result.status == 0
    assert "majority@k" in result.out
    assert {json.loads(line)["task_id"] for line in (out / "results.jsonl").read_text().splitlines()} == {
        "1 + 2",
        "3 + 4",
    }


RIGHT = {
    "Functions": {"double": "    return x + x", "square": "    return x ** 2", "negate": "    return 0 - x"},
    "Sums": {"7 + 2": " 9", "16 + 2": " \\frac{36}{2}"},
    "Capitals": {"Italy": " (B)", "France": " A. Paris", "Peru": " D"},
}


WRONG = {"Functions": "    return None", "Sums": " 1", "Capitals": " C"}


@pytest.mark.parametrize("kind", RIGHT)
def test_tasks_of_each_kind_know_right_from_wrong(kind, any_sandbox):
    task = get_task(f"{EXAMPLES / 'custom_task.py'}:{kind}")
    problems = {problem.task_id: problem for problem in task.load(None)}
    for task_id, text in RIGHT[kind].items():
        assert task.check(problems[task_id], text, any_sandbox, Limits()).passed, (task_id, text)
        assert not task.check(problems[task_id], WRONG[kind], any_sandbox, Limits()).passed


def test_grpo(model, gsm8k, capsys):
    pytest.importorskip("trl", reason="pip install treeshare[trl]")
    arguments = ["--data", gsm8k, "--model", model, "-n", 2, "--steps", 2, "--max-tokens", 4]
    with warnings.catch_warnings():  # transformers' own names that TRL still uses; that the hook may change
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        assert run("grpo", *arguments) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.rsplit(" ", 1)[0] for line in lines] == ["step 1: mean reward", "step 2: mean reward"]
