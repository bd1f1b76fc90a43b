"""A cluster ends with its driver, however that goes; its processes are played by ones that sleep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from treeshare.integrations import ray_watchdog

if not Path("/proc/self/stat").exists():
    pytest.skip("no /proc", allow_module_level=True)

DRIVER = f"""
import importlib.util, sys, time
spec = importlib.util.spec_from_file_location("ray_watchdog", {ray_watchdog.__file__!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
watchdog = module.Watchdog()
print(watchdog.folder, flush=True)
if sys.stdin.readline():
    watchdog.close()
"""

ORPHAN = "import sys, time; kept = open(sys.argv[1]) if len(sys.argv) > 1 else None; time.sleep(600)"


@pytest.fixture
def driver(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"RAY_TMPDIR": str(tmp_path)},
    )  # fmt: skip
    yield child, Path(child.stdout.readline().strip())
    child.kill()
    child.communicate()


def started(arguments, title=None):
    """A process of a session of its own, as Ray's are; as its agents, with a title for a name."""
    script = [title or sys.executable, "-I", "-S", "-c", ORPHAN, *map(str, arguments)]
    return subprocess.Popen(script, executable=sys.executable, start_new_session=True)


@pytest.mark.parametrize("how", ["killed", "interrupted", "closed"])
def test_nothing_of_the_cluster_stays(driver, tmp_path, how):
    child, folder = driver
    file, other = folder / "log", tmp_path / "other"
    file.touch()
    other.touch()
    program = "/opt/ray/raylet"
    of_cluster = [
        started([file], title="ray::DashboardAgent"),
        started([other, program, f"--session-dir={folder}/session"], title=program),
        started([other, program, folder], title=program),
    ]
    others = [
        started([other], title="ray::DashboardAgent"),
        started([file]),  # somebody who reads the cluster's log
        started([other, program, f"{folder}2"], title=program),
    ]
    try:
        time.sleep(0.3)  # until they have opened their files
        assert all(process.poll() is None for process in [*of_cluster, *others])
        if how == "closed":
            child.stdin.write("\n")
            child.stdin.flush()
        else:
            child.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
        for process in of_cluster:
            assert process.wait(20) == -signal.SIGKILL
        until = time.monotonic() + 20
        while folder.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        assert all(process.poll() is None for process in others)
    finally:
        for process in [*of_cluster, *others]:
            process.kill()
            process.wait()
