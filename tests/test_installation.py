"""Where the compiled kernels are missing: what is said, once, and that it helps."""

from __future__ import annotations

import importlib.util
import json
import logging
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from tests.kernel_levels import using_kernels
from treeshare import installation
from treeshare.cli import doctor
from treeshare.native import library

PIP = "pip install --no-cache-dir --force-reinstall --no-deps"
APT = "apt-get install g++ (or another C++ compiler), then "


@pytest.fixture(autouse=True)
def pip_in_path(request, monkeypatch):
    if "own_pip" not in request.fixturenames:
        monkeypatch.setattr(installation, "pip_install", lambda: "pip install")


@pytest.fixture
def own_pip():
    """Commands are printed as they are where the tests run."""


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)


@pytest.fixture
def not_built(monkeypatch):
    """No library was compiled when treeshare was installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "_kernels" in name else find(name))
    library._load.cache_clear()
    library.warn_where_unused.cache_clear()
    with using_kernels("auto"):
        yield
    library._load.cache_clear()
    library.warn_where_unused.cache_clear()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (None, f"{PIP} treeshare"),
        ({"url": "file:///home/a%20b", "dir_info": {}}, f"{PIP} '/home/a b'"),
        ({"url": "file:///src/treeshare", "dir_info": {"editable": True}}, f"{PIP} -e /src/treeshare"),
        (
            {"url": "https://host/treeshare.tar.gz", "archive_info": {}},
            f"{PIP} https://host/treeshare.tar.gz",
        ),
        (
            {"url": "https://host/treeshare", "vcs_info": {"vcs": "git", "commit_id": "0ab1"}},
            f"{PIP} git+https://host/treeshare@0ab1",
        ),
        ("{", f"{PIP} treeshare"),
    ],
    ids=["index", "folder", "editable", "archive", "git", "damaged"],
)
def test_the_command_installs_from_where_it_came(url, expected, monkeypatch, no_compiler):
    text = url if isinstance(url, str) else url and json.dumps(url)
    found = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr(metadata, "distribution", lambda name: found)
    assert installation.how_to_install() == APT + expected
    monkeypatch.setattr(installation, "compiler", lambda: "/usr/bin/g++")
    assert installation.how_to_install() == expected


def test_a_compiler_is_looked_for(monkeypatch, tmp_path, no_compiler):
    assert installation.compiler() is None
    for name in ("clang++", "my-g++"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o755)
    assert installation.compiler() == str(tmp_path / "clang++")
    monkeypatch.setenv("CXX", "my-g++ -m64")
    assert installation.compiler() == str(tmp_path / "my-g++")


def test_it_is_logged_once(not_built, caplog):
    library.warn_where_unused()
    library.warn_where_unused()
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("treeshare: no compiled kernels (not built): slower, ")
    assert PIP in record.getMessage()


def test_it_is_not_logged_where_the_user_wants_none(not_built, caplog, monkeypatch):
    monkeypatch.setenv(library.VARIABLE, "none")
    library.warn_where_unused()
    assert caplog.records == []


def test_a_cpu_that_runs_none_is_said(monkeypatch, caplog):
    monkeypatch.setattr(library, "kernel_levels", lambda: ("none",))
    monkeypatch.setattr(library, "_load", lambda: library._Loaded(object()))
    monkeypatch.setenv(library.VARIABLE, "")
    library.warn_where_unused.__wrapped__()
    [record] = caplog.records
    assert record.getMessage() == (
        "treeshare: no compiled kernels (this CPU runs none of them): slower, and last bits may depend on "
        "what else runs"
    )


def test_doctor_does_not_contradict_itself(not_built, no_compiler):
    compiler, kernels = doctor._compiler(), doctor._kernels()
    assert compiler.line().endswith(
        "none (treeshare itself runs without) -> needed to build the kernels; see the line on kernels"
    )
    assert kernels.found == "none (not built)"
    assert f"{APT}{PIP}" in kernels.remedy


@pytest.mark.skipif(library._load().library is None, reason="no kernels")
def test_doctor_wants_no_compiler_where_kernels_are(no_compiler):
    compiler, kernels = doctor._compiler(), doctor._kernels()
    assert (compiler.remedy, kernels.remedy) == ("", "")
    assert compiler.found == "none (treeshare itself runs without)"


def test_doctor_wants_no_compiler_where_one_is(not_built, monkeypatch):
    monkeypatch.setattr(installation, "compiler", lambda: "/usr/bin/g++")
    assert "apt-get" not in doctor._kernels().remedy
    assert PIP in doctor._kernels().remedy


def test_extras_are_brought_by_the_names_of_their_packages():
    """An index has those; it has no treeshare."""
    assert installation.how_to_add("structured") == "pip install 'llguidance>=1.9'"
    assert installation.how_to_add("gguf") == "pip install 'accelerate>=1.10' 'gguf>=0.19'"
    extras = set(metadata.metadata("treeshare").get_all("Provides-Extra")) - {"dev"}
    assert all("treeshare" not in installation.how_to_add(extra) for extra in extras)


def test_without_metadata_an_extra_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", missing)
    assert installation.how_to_add("lora") == "pip install 'treeshare[lora]'"


def test_pip_is_this_pythons(own_pip, monkeypatch, tmp_path):
    """Another environment's pip may come first in PATH, and an environment may have none."""
    python = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    for folder in ("other", "bin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pip").write_text("")
        (tmp_path / folder / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert installation.pip_install() == "pip install"
    monkeypatch.setenv("PATH", f"{tmp_path / 'other'}:{tmp_path / 'bin'}")
    assert installation.pip_install() == f"{python} -m pip install"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert installation.pip_install() == f"uv pip install --python {python}"
