"""The command line, in this process or in one of its own, on a tiny model and three small problems."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass

import pytest
import torch

from tests.cli.text_model import saved_text_model
from tests.processes import forkserver
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


def forked(*arguments, stdout=None, stderr=None):
    """The command line in a process that has its imports behind it.

    ``stdout`` and ``stderr`` are paths, or functions that make a descriptor in that process; by default
    what is printed is thrown away.
    """
    words = [os.fspath(_text(argument)) for argument in arguments]
    child = forkserver.Process(target=_run, args=(words, stdout or os.devnull, stderr or os.devnull))
    child.start()
    return child


def finished(child):
    """Its exit status, when it has ended."""
    child.join()
    return child.exitcode


def _run(words, stdout, stderr):
    for number, target in ((1, stdout), (2, stderr)):
        descriptor = target() if callable(target) else os.open(target, os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    sys.argv = ["treeshare", *words]
    main()


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
    """The arguments of a small run, all but ``--out`` and ``-n``.

    One thread: on busy cores two would wait for each other.
    """
    options = {"--data": data, "--model": text_model, "--max-tokens": 12, "--threads": 1}
    return ["sample", "--task", "humaneval", *(word for option in options.items() for word in option)]


def lines_of(out):
    return (out / "samples.jsonl").read_text().splitlines()
