"""Without what only Linux has, as on macOS: everything is imported, models run, programs are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.cli.text_model import saved_text_model

ROOT = Path(__file__).parents[1]

WITHOUT_LINUX = """
import fcntl, mmap, os, resource, select, signal, sys, urllib.request
import datasets, psutil, torch, transformers.masking_utils
# Others' packages have what they look up by the platform's name.
LACKS = {
    fcntl: ("F_ADD_SEALS", "F_GET_SEALS", "F_SEAL_"),
    os: ("memfd_create", "MFD_", "sched_", "pidfd_open", "O_PATH", "O_TMPFILE", "setres", "getres", "eventfd",
         "copy_file_range", "getrandom", "posix_fadvise", "setxattr", "getxattr", "unshare", "setns"),
    signal: ("pidfd_send_signal", "sigtimedwait", "sigwaitinfo"),
    resource: ("prlimit",),
    select: ("epoll", "EPOLL"),
    mmap: ("MADV_HUGEPAGE", "MADV_NOHUGEPAGE", "MAP_POPULATE"),
}
for module, beginnings in LACKS.items():
    for name in dir(module):
        if name.startswith(beginnings):
            delattr(module, name)
sys.modules["triton"] = None  # no wheel
sys.platform = "darwin"
"""

IMPORTS = """
import importlib, pkgutil, treeshare
OTHERS = ("treeshare.integrations.", "treeshare.attention.triton", "treeshare.native._kernels")
names = [
    module.name
    for module in pkgutil.walk_packages(treeshare.__path__, "treeshare.", onerror=lambda name: None)
    if not module.name.startswith(OTHERS) and not module.name.endswith("__main__")
]
failed = []
for name in names:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed.append(f"{name}: {error!r}")
assert len(names) > 250, len(names)
print("imported, failed:", failed)
"""

COMMANDS = """
import json, treeshare.cli
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        treeshare.cli.main()
    except SystemExit as end:
        print("status", end.code, file=sys.stderr)
"""


def run_without_linux(code, *arguments):
    """Python, without what only Linux has, and without compiled kernels."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TREESHARE_KERNELS": "none", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_LINUX + code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_all_is_imported_models_run_answers_are_judged_and_programs_refused_in_one_line(tmp_path):
    record = {
        "task_id": "T/0",
        "prompt": "def f():\n",
        "entry_point": "f",
        "test": "",
        "canonical_solution": "",
    }
    (tmp_path / "programs.jsonl").write_text(json.dumps(record) + "\n")
    (tmp_path / "answers.jsonl").write_text(json.dumps({"question": "1 + 1 =", "answer": "2"}) + "\n")
    model = ["--model", saved_text_model(tmp_path), "--max-tokens", "3", "--threads", "1", "-n", "2"]
    programs, answers = str(tmp_path / "programs"), str(tmp_path / "answers")
    commands = [
        ["sample", "--task", "humaneval", "--data", f"{programs}.jsonl", *model, "--out", programs],
        ["evaluate", programs],
        ["sample", "--task", "qa", "--data", f"{answers}.jsonl", *model, "--out", answers],
        ["evaluate", answers],
    ]
    done = run_without_linux(IMPORTS + COMMANDS, json.dumps(commands, default=str))
    imported, *printed = done.stdout.splitlines()
    assert imported == "imported, failed: []"
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.startswith("status")] == [
        "status 0", "status 2", "status 0", "status 0"
    ], done.stderr  # fmt: skip
    assert len((tmp_path / "programs" / "samples.jsonl").read_text().splitlines()) == 2
    refusal = lines[lines.index("status 2") - 1]
    assert lines[lines.index("status 2") - 2] == "status 0", "it is one line"
    assert refusal.startswith("treeshare: sandbox: no isolation on darwin without os.memfd_create, os.pidfd")
    assert "evaluate the run directory on Linux" in refusal
    assert any("| k | pass@k |" in line for line in printed)
