"""The README's example of a task of one's own, run as it stands there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from treeshare.errors import DataError
from treeshare.evals import PromptOptions, build_prompts, evaluate_completions
from treeshare.evals.sandbox import Limits
from treeshare.tasks.registry import get_task

README = Path(__file__).parents[2] / "tasks" / "README.md"
ROWS = [
    {
        "id": "double",
        "request": "Double x.",
        "test": "assert f(2) == 4",
        "solution": "def f(x): return 2 * x",
    },
    {"id": "square", "request": "Square x.", "test": "assert f(3) == 9"},
]


@pytest.fixture
def task(tmp_path):
    (text,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(text.splitlines()) <= 50
    path = tmp_path / "snippets.py"
    path.write_text(text)
    return get_task(f"{path}:Snippets")


def test_it_makes_prompts_and_checks_completions(task, tmp_path, sandbox):
    data = tmp_path / "snippets.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    problems = task.load(data)
    built = build_prompts(task, problems[1:], PromptOptions(data=data, num_shots=1))
    assert built.texts() == ["# Double x.\ndef f(x): return 2 * x\n\n# Square x.\n"]
    completions = {"double": "def f(x): return x + x", "square": "def f(x): return x + x"}
    records = [
        {"task_id": task_id, "completion_index": 0, "completion": text}
        for task_id, text in completions.items()
    ]
    evaluation = evaluate_completions(task, problems, records, sandbox, workers=2, limits=Limits())
    assert evaluation.counts() == {"double": (1, 1), "square": (1, 0)}


def test_its_mistakes_are_one_line(task, tmp_path):
    with pytest.raises(DataError, match="give --data FILE"):
        task.load(None)
    with pytest.raises(DataError, match="cannot read"):
        task.load(tmp_path / "missing.jsonl")
