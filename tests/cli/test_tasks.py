from __future__ import annotations

import json

from typer.testing import CliRunner

from treeshare.cli.app import app
from treeshare.tasks.registry import get_task, task_names


def run(*arguments):
    return CliRunner().invoke(app, ["tasks", *arguments])


def test_every_task_is_listed_with_its_facts(tmp_path):
    found = run("--json", str(tmp_path / "tasks.json"))
    assert found.exit_code == 0
    entries = {entry["name"]: entry for entry in json.loads((tmp_path / "tasks.json").read_text())["tasks"]}
    assert list(entries) == task_names()
    rows = {line.split("  ")[0]: line for line in found.output.splitlines()}
    for name, entry in entries.items():
        task = get_task(name)
        assert rows[name].endswith("yes" if task.needs_sandbox else "no")
        if name != "qa":  # any file
            assert str(entry["problems"]) in rows[name]
            assert entry["source"] in rows[name]
            assert entry["licence"] in rows[name]


def test_one_task(tmp_path):
    text = run("livecodebench").output
    for part in (
        "livecodebench/code_generation_lite",
        "6 s each",
        "'###'",
        "--task-option difficulty",
        "2000",
    ):
        assert part in text
    assert "runs code                 no\n" in run("math-500").output
    assert "4, with --chat 0" in run("math-500").output


def test_an_own_task(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from treeshare.evals import Task\n"
        "class Mine(Task):\n    '''Own.'''\n    name, stop, max_tokens = 'mine', (), 8\n"
        "    def load(self, data): return []\n    def check(self, *args): raise NotImplementedError\n"
    )
    assert run(f"{path}:Mine").output.startswith(f"{path}:Mine: Own.\n  problems")
