"""``treeshare doctor``: what it says, what it costs, and that it never hangs."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from tests.kernel_levels import using_kernels
from treeshare.cli import doctor as module
from treeshare.cli import hub
from treeshare.engine import dtype_speed
from treeshare.evals.sandbox import landlock
from treeshare.installation import pip_install
from treeshare.native import kernel_level, library, structs


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def finding(content, name):
    return next(entry for entry in content["findings"] if entry["name"] == name)


def test_lines_and_json_say_the_same(cli, tmp_path):
    text, to_file = cli("doctor"), cli("doctor", "--json", str(tmp_path / "out.json"))
    content = json.loads((tmp_path / "out.json").read_text())
    names = [entry["name"] for entry in content["findings"]]
    assert [line[8:24].strip() for line in text.out.splitlines()] == names
    assert {"python", "torch", "cpu", "memory", "sandbox", "C++ compiler", "model cache", "hub"} <= set(names)
    assert (text.status, to_file.status) == ((0 if content["works"] else 1),) * 2
    assert (to_file.out, text.err) == ("", "")
    assert finding(content, "torch")["data"]["threads"] >= 1
    memory = finding(content, "memory")["data"]
    assert 0 < memory["default_kv_budget_bytes"] < memory["free_bytes"]


CHECKS = [
    "_python", "_packages", "_extras", "_torch", "_cpu", "_memory", "_sandboxes", "_compiler", "_kernels",
    "_dtypes", "_embedded_model", "_model_cache", "hub",
]  # fmt: skip


@pytest.mark.parametrize("broken", CHECKS)
def test_a_check_that_fails_is_a_finding_and_the_others_come(cli, monkeypatch, broken):
    def fail():
        raise OSError("no\nsuch device")

    for name in CHECKS:  # the checks themselves are slow, and tested on their own
        monkeypatch.setattr(module, name, lambda name=name: module.Finding(name=name, found="there", data={}))
    monkeypatch.setattr(module, broken, fail)
    result = cli("doctor")
    lines = result.out.splitlines()
    assert (result.status, len(lines)) == (1, len(CHECKS))
    [line] = [line for line in lines if not line.startswith("ok")]
    assert line.startswith("MISSING")
    assert line.endswith("missing -> OSError: no\\nsuch device")


def test_a_level_of_kernels_that_is_not_there_is_a_finding(cli, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "avx7")
    kernel_level.cache_clear()
    try:
        result = cli("doctor", "--json")
    finally:
        monkeypatch.undo()
        kernel_level.cache_clear()
    content = json.loads(result.out)
    assert "TREESHARE_KERNELS: got 'avx7', expected one of" in finding(content, "kernels")["remedy"]
    assert content["findings"][-1]["name"] == "hub"


def test_json_to_stdout_is_nothing_else(cli, monkeypatch):
    monkeypatch.setattr(module, "_findings", lambda _: iter([module._python()]))
    result = cli("doctor", "--json")
    assert json.loads(result.out)["works"] is True
    assert result.status == 0


def test_without_a_sandbox_it_fails_and_says_how_to_get_one(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(landlock, "landlock_version", lambda: -1)
    result = cli("doctor")
    assert result.status == 1
    [line] = [line for line in result.out.splitlines() if line.startswith("MISSING")]
    assert line.startswith("MISSING sandbox         missing -> bwrap not found (package bubblewrap)")
    assert "apt-get install bubblewrap" in line


def test_the_second_sandbox_is_enough_but_the_first_is_recommended(monkeypatch, tmp_path):
    if landlock.landlock_version() < 1:
        pytest.skip("this kernel has no Landlock")
    monkeypatch.setenv("PATH", str(tmp_path))
    [found] = module._sandboxes()
    assert (found.found, found.fails) == ("Landlock and seccomp", False)
    assert "apt-get install bubblewrap" in found.remedy


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = module._torch()
    assert found.fails
    assert found.remedy.startswith(f"{pip_install()} torch (")


def test_the_hub_is_not_asked_when_the_environment_forbids_it(monkeypatch):
    def fail(*_, **__):
        raise AssertionError

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    assert hub.hub().found == "not asked: HF_HUB_OFFLINE is set"


@pytest.mark.parametrize(
    ("seconds", "answer", "reachable"),
    [
        (1.0, OSError("too late"), False),  # as a name server that never answers
        (0.0, OSError("no route"), False),
        (0.0, urllib.error.HTTPError("x", 404, "no", None, None), True),
        (0.0, urllib.error.HTTPError("x", 503, "no", None, None), False),
    ],
)
def test_the_hub_never_hangs_it(monkeypatch, seconds, answer, reachable):
    def urlopen(*_, **__):
        time.sleep(seconds)
        raise answer

    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr("treeshare.hub_state._TIMEOUT_S", 0.3)
    began = time.monotonic()
    found = hub.hub()
    assert seconds == 0 or time.monotonic() - began < seconds
    assert found.data["reachable"] is reachable
    assert bool(found.remedy) is not reachable


def test_a_model_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    found = module._model_cache()
    assert not found.fails
    assert found.remedy.startswith("set XDG_CACHE_HOME to a directory that you can write to")


def test_a_file_without_json_is_a_mistake(cli, tmp_path):
    assert "expected --json before it" in cli("doctor", str(tmp_path / "x")).refusal


def test_kernels_that_are_not_used_are_named_with_the_reason(monkeypatch):
    if kernel_level() == "none":
        pytest.skip("no kernels for this CPU")
    changed = np.dtype([*structs.SLICE.descr, ("new", np.int64)])
    monkeypatch.setitem(structs.STRUCTS, "Slice", changed)
    library._load.cache_clear()
    with using_kernels("auto"):
        found = module._kernels()
    library._load.cache_clear()
    assert found.found == "none (built from other sources: Slice has 64 bytes there and 72 here)"
    assert "--no-cache-dir --force-reinstall --no-deps" in found.remedy


@pytest.mark.parametrize("bfloat16", [164.0, 1650.0])
def test_the_faster_dtype_is_named(cli, text_model, monkeypatch, bfloat16):
    rates = dtype_speed.LinearRates(gflops={"float32": 261.0, "bfloat16": bfloat16})
    monkeypatch.setattr(dtype_speed, "linear_rates_here", lambda _: rates)
    result = cli("doctor", "--model", str(text_model), "--json")
    found = [finding(json.loads(result.out), name) for name in ("dtypes", "model")]
    assert found[0]["found"] == f"linear layers: {rates}"
    assert found[1]["data"]["dtype"] == "float32"
    expected = [False, True] if bfloat16 > 261 else [True, False]
    assert ["--dtype" in entry["remedy"] for entry in found] == expected


def test_a_model_says_why_its_layers_are_not_fused(cli, text_model):
    """And one that is not there fails the check in one line."""
    with using_kernels("none"):
        result = cli("doctor", "--model", str(text_model), "--json")
    found = finding(json.loads(result.out), "model")
    assert found["data"]["unfused_reason"] in found["found"]
    assert "layers not fused: no compiled kernels are used" in found["found"]
    missing = cli("doctor", "--model", "/nowhere/at/all")
    (line,) = [line for line in missing.out.splitlines() if line.startswith("MISSING")]
    assert "got '/nowhere/at/all', expected a folder" in line
    assert missing.status == 1
