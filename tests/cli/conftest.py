"""The command line, in this process or in one of its own, on a tiny model and three small problems."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from tests.cli.text_model import saved_text_model
from treeshare.cli import main


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    @property
    def refusal(self):
        """The one line on stderr of a user's mistake."""
        lines = self.err.splitlines()
        assert self.status == 2, self
        assert "Traceback" not in self.err
        assert lines, self
        assert lines[-1].startswith("treeshare: "), self
        assert lines[-1].isprintable()
        # The line that says which model was loaded is no part of the complaint.
        assert all(", loaded in " in line for line in lines[:-1]), self
        return lines[-1]


@pytest.fixture
def cli(capfd, monkeypatch):
    """``cli("sample", "--out", path)`` runs the command line in this process."""

    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["treeshare", *map(os.fspath, map(_text, arguments))])
        num_threads = torch.get_num_threads()
        with pytest.raises(SystemExit) as caught:
            main()
        torch.set_num_threads(num_threads)
        return Result(caught.value.code, *capfd.readouterr())

    return run


def _text(argument):
    return argument if isinstance(argument, os.PathLike) else str(argument)


def start(*arguments, **options):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "treeshare.cli", *map(_text, arguments)]
    return subprocess.Popen(command, text=True, **options)


@contextlib.contextmanager
def started(*arguments, **options):
    """The same; ended at the latest when the context is."""
    child = start(*arguments, **options)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.fixture(scope="session")
def text_model(tmp_path_factory):
    return saved_text_model(tmp_path_factory.mktemp("models"))


PROBLEMS = [
    {"task_id": "T/0", "prompt": "def f(x):\n    return", "entry_point": "f", "canonical_solution": " x\n"},
    {"task_id": "T/1", "prompt": "def f(x, y):\n    return", "entry_point": "f"},
    {"task_id": "T/2", "prompt": "import os\n", "entry_point": "os.getpid"},
]
TESTS = ["assert f(1) == 1", "assert f(1, 2) == 3", "assert f() > 0"]


@pytest.fixture(scope="session")
def problems():
    return [
        problem | {"test": f"def check(f):\n    {test}\n"}
        for problem, test in zip(PROBLEMS, TESTS, strict=True)
    ]


@pytest.fixture
def data(tmp_path, problems):
    return write_lines(tmp_path / "problems.jsonl", problems)


def write_lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


@pytest.fixture
def sampling(text_model, data):
    """The arguments of a small run, all but ``--out`` and ``-n``; one thread: two wait for each other on busy cores."""
    options = {"--data": data, "--model": text_model, "--max-tokens": 12, "--threads": 1}
    return ["sample", "--task", "humaneval", *(word for option in options.items() for word in option)]


def lines_of(out):
    return (out / "samples.jsonl").read_text().splitlines()
