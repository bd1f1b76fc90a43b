"""The installation: its version, how the compiled kernels come into it, and what to do where they did not.

A wheel brings them. An installation from source compiles them, where there is a compiler: it is optional, so
nobody needs one, and what is missing is said when a model is loaded.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
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
    command = f"pip install --no-cache-dir --force-reinstall --no-deps {_source()}"
    return command if compiler() else f"apt-get install g++ (or another C++ compiler), then {command}"


def _source() -> str:
    """What was given to pip: a folder (``-e`` before it where it stays in place), an address, or the name."""
    try:
        read = metadata.distribution("treeshare").read_text  # of what pip wrote, in the installation
        content = json.loads(read("direct_url.json") or "{}")
        url, folder = content.get("url", ""), content.get("dir_info")
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return "treeshare"
    if folder is None:
        return shlex.quote(url) if url and "vcs_info" not in content else "treeshare"
    path = shlex.quote(unquote(urlparse(url).path))
    return f"-e {path}" if folder.get("editable") else path
