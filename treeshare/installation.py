"""An installation's version, what it may lack (compiled kernels, packages), and what brings that.

A wheel brings the kernels. An installation from source compiles them, where there is a compiler: it is
optional, so nobody needs one, and what is missing is said when a model is loaded. Commands work as they are
printed: by this Python's own pip, and by names that a package index has.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlparse

NAMES = ("c++", "g++", "clang++")
"""Of C++ compilers, beside the one that ``CXX`` names."""


def version() -> str:
    """The installed version; of a checkout that is not installed its ``pyproject.toml``'s, or ``unknown``."""
    try:
        return metadata.version("treeshare")
    except metadata.PackageNotFoundError:
        pass
    try:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])
    except (OSError, ValueError, KeyError):
        return "unknown"


def compiler() -> str | None:
    """The path of a C++ compiler; None if there is none."""
    wanted = shlex.split(os.environ.get("CXX", ""))[:1]
    return next((path for name in (*wanted, *NAMES) if (path := shutil.which(name))), None)


def how_to_install() -> str:
    """What builds the kernels of this installation anew.

    By pip's flags: else it says that treeshare is there already, or takes the wheel without kernels that it
    built before and kept.
    """
    command = f"{pip_install()} --no-cache-dir --force-reinstall --no-deps {_source()}"
    return command if compiler() else f"apt-get install g++ (or another C++ compiler), then {command}"


def pip_install() -> str:
    """How a shell installs into this Python's environment, whose pip need not be the first that it finds."""
    if importlib.util.find_spec("pip") is None:
        return f"uv pip install --python {shlex.quote(sys.executable)}"
    found = shutil.which("pip")
    if found is not None and os.path.dirname(found) == os.path.dirname(sys.executable):
        return "pip install"
    return f"{shlex.quote(sys.executable)} -m pip install"


def how_to_add(extra: str) -> str:
    """The command that brings the packages of an extra: ``pip install 'llguidance>=1.9'``.

    It names the packages, not ``treeshare[extra]``, which pip would look for in an index even where treeshare
    came from a checkout or a wheel.
    """
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires("treeshare") or []]
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        required = []
    wanted = [
        shlex.quote(f"{package.name}{package.specifier}")
        for package in required
        if package.marker
        and package.marker.evaluate({"extra": extra})
        and not package.marker.evaluate({"extra": ""})
    ]
    return f"{pip_install()} {' '.join(wanted) or shlex.quote(f'treeshare[{extra}]')}"


def _source() -> str:
    """What was given to pip: a folder (``-e`` before it where it stays in place), an address, or the name."""
    try:
        read = metadata.distribution("treeshare").read_text  # of what pip wrote, in the installation
        content = json.loads(read("direct_url.json") or "{}")
        url, folder = content.get("url", ""), content.get("dir_info")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return "treeshare"
    if folder is None:
        vcs = content.get("vcs_info")
        return shlex.quote(f"{vcs['vcs']}+{url}@{vcs['commit_id']}" if vcs else url or "treeshare")
    path = shlex.quote(unquote(urlparse(url).path))
    return f"-e {path}" if folder.get("editable") else path
