"""Which sandbox is taken, what is said where there is none, and the contract for a plain user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox import BubblewrapSandbox, LandlockSandbox, detect, landlock
from treeshare.evals.sandbox.base import SandboxError
from treeshare.evals.sandbox.interpreter import spare_uid

ROOT = Path(__file__).parents[2]


def test_bubblewrap_first_then_landlock_then_none(sandbox, monkeypatch, tmp_path):
    """``sandbox`` skips this where neither works."""
    if isinstance(sandbox, BubblewrapSandbox):
        assert isinstance(detect.default_sandbox(), BubblewrapSandbox)
        return
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(detect.default_sandbox(), LandlockSandbox)


def test_without_any_it_refuses_and_says_how_to_get_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(landlock, "landlock_version", lambda: -1)
    with pytest.raises(SandboxUnavailableError) as caught:
        detect.default_sandbox()
    message = str(caught.value)
    for part in ("bwrap not found", "no Landlock", "never runs without", "apt-get install bubblewrap"):
        assert part in message
    assert "\n" not in message


def test_a_bubblewrap_that_does_not_work_is_not_used(monkeypatch, tmp_path):
    """As in a container that forbids namespaces."""
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    reason = "bubblewrap does not work here: bwrap: No permissions to create new namespace"
    with pytest.raises(SandboxUnavailableError, match=reason):
        detect.working_sandbox("bubblewrap")
    with pytest.raises(SandboxError, match="No permissions"):
        BubblewrapSandbox().run("")


def test_a_sandbox_that_does_not_hold_is_not_used(monkeypatch, sandbox):
    """The probe sees that nothing is denied."""
    name = sandbox.name
    allow_all = b"\x06\x00\x00\x00\x00\x00\xff\x7f"
    for module in ("bubblewrap", "landlock"):
        monkeypatch.setattr(f"treeshare.evals.sandbox.{module}.filter_program", lambda **_: allow_all)
    with pytest.raises(SandboxUnavailableError, match=f"{name} is not secure here: wrong answer"):
        detect.working_sandbox(name)


@pytest.mark.parametrize(
    ("map_text", "low", "high"),
    [("0 0 4294967295\n", 1_000_000, 1 << 29), ("0 1000 1\n1 100000 65535\n", 20_000, 65_000)],
)
def test_spare_ids_are_in_the_namespace(monkeypatch, map_text, low, high):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: map_text)
    assert all(low <= spare_uid(choice) < high for choice in (0, 12345678, (1 << 32) - 1))


def test_no_spare_id_is_said(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "0 1000 1\n")
    with pytest.raises(SandboxUnavailableError, match="this user namespace has no spare user id"):
        spare_uid(1)


AS_PLAIN_USER = """
import os, sys
from tests.evals.attacks import FAST
from treeshare.evals.sandbox import BACKENDS, Limits, working_sandbox
assert os.getuid() == 12345
for name in BACKENDS:
    sandbox = working_sandbox(name)
    for attack, (program, verdicts) in FAST.items():
        found = sandbox.run(program, limits=Limits(wall_s=20.0, memory_bytes=256 << 20))
        assert found.verdict in verdicts, (name, attack, found)
    print(name)
"""


@pytest.mark.slow
def test_the_contract_holds_for_a_plain_user(tmp_path):
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("becoming a plain user takes root and setpriv")
    copy = tmp_path / "copy"
    for package in ("treeshare", "tests/evals"):
        shutil.copytree(ROOT / package, copy / package)
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(0o755)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = next(path for path in sys.path if path.endswith(f"{version}/site-packages"))
    command = ["setpriv", "--reuid", "12345", "--regid", "12345", "--clear-groups", f"/usr/bin/{version}"]
    try:
        subprocess.run([*command, "-c", "pass"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(f"no /usr/bin/{version} that everybody may run")
    environment = {"PYTHONPATH": f"{copy}:{packages}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, "-c", AS_PLAIN_USER], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines() == ["bubblewrap", "Landlock and seccomp"], done.stderr
