"""Isolation without namespaces: Landlock for files, seccomp for calls, rlimits, another user if root."""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.interpreter import package_folders, this_interpreter
from treeshare.evals.sandbox.process import ProcessSandbox, python_options
from treeshare.evals.sandbox.roles import Role, role_code
from treeshare.evals.sandbox.seccomp import PID_MARK, filter_program

if TYPE_CHECKING:
    from pathlib import Path

    from treeshare.evals.sandbox.base import Limits

_CREATE_RULESET, _VERSION = 444, 1
_READABLE = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class LandlockSandbox(ProcessSandbox):
    """Runs each program as a process without nearly all rights, where namespaces are not available.

    Weaker than bubblewrap where the kernel offers no better: a program has no scratch folder (nothing counts
    how much it would write), can ask whether a path or a process exists, how old it is and where a link
    leads, and can read third-party packages in the interpreter's folder. For a plain user, threads are
    bounded by the address space only. For root whose interpreter others cannot reach, only Landlock guards
    files.

    Raises:
        SandboxUnavailableError: If the kernel has no Landlock or the interpreter cannot be shown.
    """

    name = "Landlock and seccomp"

    def __init__(self) -> None:
        super().__init__()
        if landlock_version() < 1:
            raise SandboxUnavailableError(
                "sandbox: this kernel has no Landlock; use Linux 5.13 or later with lsm=landlock"
            )
        found = this_interpreter()
        self._filter = filter_program(metadata=True)
        self._forking_filter = filter_program(metadata=True, may_fork=True)
        self._python = str(found.executable)
        self._readable = [*_READABLE, *_DEVICES, str(found.prefix / "lib"), self._python]
        folders = package_folders()
        self._packages = ":".join(f"{name}={folder}" for name, folder in folders.items())
        self._readable += map(str, folders.values())
        self._readable = [path for path in self._readable if os.path.exists(path)]
        needed = [found.prefix / "lib", *folders.values()]
        self._keep_reading = self.is_root and not all(map(_open_to_all, needed))

    def command(self, role: Role, spec: dict[str, str], limits: Limits) -> tuple[list[str], dict[str, bytes]]:
        """See ``ProcessSandbox.command``."""
        spec |= {
            "landlock": ":".join(self._readable),
            "packages": self._packages,
            "filter": "{filter}",
            "pid_mark": str(PID_MARK),
            "parent": str(os.getpid()),
            "keep_reading": str(int(self._keep_reading)),
        }
        if self.is_root:
            spec["threads"] = str(limits.threads)
        contents = {"filter": self._filter, "code": role_code(role, with_confine=True)}
        if role is Role.EXAMINER:
            spec["fork_filter"] = "{fork_filter}"
            contents |= {"filter": self._forking_filter, "fork_filter": self._filter}
        return [self._python, *python_options()], contents


def landlock_version() -> int:
    """The version of Landlock that the running kernel offers; less than 1 for none."""
    return ctypes.CDLL(None).syscall(_CREATE_RULESET, None, 0, _VERSION)  # type: ignore[no-any-return]


def _open_to_all(folder: Path) -> bool:
    """Whether every user may enter it."""
    return all(path.stat().st_mode & 0o001 for path in (folder, *folder.parents))
