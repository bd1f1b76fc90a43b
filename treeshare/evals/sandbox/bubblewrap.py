"""Isolation by bubblewrap: own namespaces, a read-only interpreter, a scratch folder, rlimits, seccomp."""

from __future__ import annotations

import os
import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.interpreter import package_folders, this_interpreter
from treeshare.evals.sandbox.launcher import INFO
from treeshare.evals.sandbox.process import ProcessSandbox, python_options
from treeshare.evals.sandbox.roles import Role, role_code
from treeshare.evals.sandbox.seccomp import PID_MARK, filter_program

if TYPE_CHECKING:
    from treeshare.evals.sandbox.base import Limits

INSIDE_PACKAGES = Path("/packages")
INSIDE_PREFIX = Path("/python")
"""Where programs see the interpreter's folder: its real path may name the user, under a closed folder."""

_INSIDE_PID = 2
"""The first process of a process namespace is bubblewrap's own."""


class BubblewrapSandbox(ProcessSandbox):
    """Runs each program in a bubblewrap of its own, with a scratch folder in memory as its working folder.

    A program can read the system's folder /usr, without its Python packages, and learn where the interpreter
    lies on the host. How many files it makes is bounded by time only (180,000 empty ones took 2.5 seconds and
    180 MB of the kernel's memory). It can cheat at tests that run in its own process, not
    at those of ``examine``.

    Raises:
        SandboxUnavailableError: If bubblewrap is missing or the interpreter cannot be shown; the message says
            what to do.
    """

    name = "bubblewrap"

    def __init__(self) -> None:
        super().__init__()
        path = shutil.which("bwrap")
        if path is None:
            raise SandboxUnavailableError("sandbox: bwrap not found (package bubblewrap)")
        self._bwrap = path
        self._filter = filter_program(pid=_INSIDE_PID, metadata=False)
        self._forking_filter = filter_program(pid=_INSIDE_PID, metadata=False, may_fork=True)
        self._fork_filter = filter_program(metadata=False)
        self._interpreter, self._packages = this_interpreter(), package_folders()

    def command(self, role: Role, spec: dict[str, str], limits: Limits) -> tuple[list[str], dict[str, bytes]]:
        """See ``ProcessSandbox.command``."""
        spec["threads"] = str(limits.threads)
        spec["packages"] = ":".join(f"{name}={INSIDE_PACKAGES / name}" for name in self._packages)
        python = self._inside(self._interpreter.executable)
        arguments = [self._bwrap, *self._options, "--size", str(limits.file_bytes), "--perms", "1777"]
        arguments += ["--tmpfs", "/tmp", "--chdir", "/tmp", "--remount-ro", "/dev", "--remount-ro", "/"]
        arguments += ["--info-fd", INFO, "--seccomp", "{filter}", "--", str(python), *python_options()]
        if role is not Role.EXAMINER:
            return arguments, {"filter": self._filter, "code": role_code(role, with_confine=False)}
        spec |= {"fork_filter": "{fork_filter}", "pid_mark": str(PID_MARK)}
        code = role_code(role, with_confine=True)
        return arguments, {"filter": self._forking_filter, "fork_filter": self._fork_filter, "code": code}

    def _inside(self, path: Path) -> Path:
        """Where a program sees a path of the interpreter's."""
        if path.is_relative_to("/usr"):
            return path
        return INSIDE_PREFIX / path.relative_to(self._interpreter.prefix)

    @cached_property
    def _options(self) -> list[str]:
        """Bubblewrap's arguments that are the same for every run."""
        options = ["--die-with-parent", "--new-session", "--hostname", "sandbox"]
        options += [
            "--unshare-ipc",
            "--unshare-pid",
            "--unshare-net",
            "--unshare-uts",
            "--unshare-cgroup-try",
        ]
        if self.is_root:
            options += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        else:
            options += ["--unshare-user"]
        options += ["--ro-bind", "/usr", "/usr"]
        for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"):
            if os.path.islink(name):
                options += ["--symlink", os.readlink(name), name]
            elif os.path.isdir(name):
                options += ["--ro-bind", name, name]
        options += ["--perms", "0755", "--dir", "/etc"]
        options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
        options += self._interpreter_options()
        # Without root, bubblewrap's own process is the same user's: its memory must not be open to a program.
        options += ["--proc", "/proc", "--tmpfs", "/proc/1", "--remount-ro", "/proc/1"]
        return [*options, "--dev", "/dev"]

    def _interpreter_options(self) -> list[str]:
        """Show the interpreter and its library, not the packages in it."""
        found, options = self._interpreter, []
        if not found.is_system:
            library = str(INSIDE_PREFIX / "lib")
            options += ["--perms", "0755", "--dir", str(INSIDE_PREFIX)]
            options += ["--ro-bind", str(found.prefix / "lib"), library]
            options += ["--ro-bind", str(found.executable), str(self._inside(found.executable))]
            options += ["--setenv", "LD_LIBRARY_PATH", library]
        for hidden in map(str, map(self._inside, found.packages)):
            options += ["--tmpfs", hidden, "--remount-ro", hidden]
        options += ["--perms", "0755", "--dir", str(INSIDE_PACKAGES)]
        for name, folder in self._packages.items():
            options += ["--ro-bind", str(folder), str(INSIDE_PACKAGES / name)]
        return options
