"""A system-call filter for a program that is to stay one process, without network or hidden memory.

It has a list of what is allowed (``syscalls.py``). So it denies what namespaces, Landlock and rlimits leave
open: starting processes (which would multiply the memory limit), sockets of every family (Landlock leaves UDP
and Unix datagrams open, network namespaces vsock), memory that no limit counts, other processes, locks on the
host's files, and kernel interfaces that came later than the list. The result is classic BPF as the kernel
takes it. ``tests/evals/test_seccomp.py`` compares the numbers with libseccomp's and runs the filter.
"""

from __future__ import annotations

import errno
import platform
import struct
from typing import TYPE_CHECKING

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.syscalls import JUDGED, NEWEST, OWN_FILES, PLAIN, TOLD_APART

if TYPE_CHECKING:
    from collections.abc import Iterable

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Per machine, the column of ``Numbers`` and the kernel's AUDIT_ARCH value."""

_ERRORS = {
    "fork": errno.EAGAIN,
    "vfork": errno.EAGAIN,
    "clone3": errno.ENOSYS,  # the C library then falls back on clone, whose flags a filter can see
}
"""What a refused call of ``TOLD_APART`` says; ``ENETDOWN`` the others."""

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080
_AF_UNIX = 1
_PR_SET_PDEATHSIG = 1
_COMMANDS: dict[str, tuple[int, tuple[int, ...]]] = {
    # F_DUPFD, F_GETFD to F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS: no locks, leases,
    # owners of signals, notifications or bigger pipes.
    "fcntl": (1, (0, 1, 2, 3, 4, 1030, 1032, 1033, 1034)),
    # TCGETS, TCGETS2, TIOCGPGRP, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
    "ioctl": (1, (0x5401, 0x802C542A, 0x540F, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),
    # PR_GET_PDEATHSIG to PR_SET_DUMPABLE, names of threads, PR_SET_SECCOMP (a further filter),
    # PR_CAPBSET_READ, PR_SET_NO_NEW_PRIVS and its reading, PR_SET_VMA (names of memory)
    "prctl": (0, (2, 3, 4, 15, 16, 21, 22, 23, 38, 39, 0x53564D41)),
    "socketpair": (0, (_AF_UNIX,)),
}
"""Per call: which argument says what it does, and the values that are allowed."""

_X32_BIT = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16
"""Where the kernel's seccomp_data has them; an argument takes 8 bytes, the low half first."""

_OP_BYTES = 8

PID_MARK = 0x7FEDCBA9
"""Stands for the process's own id where that is not known yet; the process puts it in."""


def filter_program(*, pid: int = PID_MARK, metadata: bool, may_fork: bool = False) -> bytes:
    """The filter for this machine.

    Args:
        pid: The process's own id, as it sees it: the only one it may signal.
        metadata: Whether to deny changing modes, owners, times and lengths by path, which Landlock does not.
        may_fork: Whether to leave out what denies forks and a signal at the parent's death: for a process
            that gives both up in each fork, by the same filter without this.

    Raises:
        SandboxUnavailableError: On a machine whose system-call numbers are not known here.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise SandboxUnavailableError(
            f"sandbox: no system-call filter for {machine}; got one for {', '.join(_MACHINES)}"
        )
    column, arch = _MACHINES[machine]
    code = [_op(_LOAD, _ARCH), _op(_JUMP_EQUAL, arch, 1, 0), _op(_RETURN, _KILL), _op(_LOAD, _NUMBER)]
    if machine == "x86_64":
        code += [_op(_JUMP_AT_LEAST, _X32_BIT, 0, 1), _op(_RETURN, _KILL)]
    for name, numbers in (JUDGED | TOLD_APART).items():
        number = numbers[column]
        if number is not None:
            rule = b"".join(_rule(name, pid, may_fork=may_fork))
            code += [_op(_JUMP_EQUAL, number, 0, len(rule) // _OP_BYTES), rule]
    allowed = PLAIN if metadata else PLAIN | OWN_FILES
    for low, end in _ranges(
        number for numbers in allowed.values() if (number := numbers[column]) is not None
    ):
        code += [_op(_JUMP_AT_LEAST, low, 0, 2), _op(_JUMP_AT_LEAST, end, 1, 0), _op(_RETURN, _ALLOW)]
    code += [_op(_JUMP_AT_LEAST, NEWEST + 1, 0, 1), _refusal(errno.ENOSYS), _refusal(errno.EPERM)]
    return b"".join(code)


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers, ascending: the first of each, and the first after it."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _rule(name: str, pid: int, *, may_fork: bool) -> list[bytes]:
    """What to do with a call, once it is known to be ``name``; ends in a return on every path."""
    allow, refuse = _op(_RETURN, _ALLOW), _refusal(errno.EPERM)
    if name in ("fork", "vfork") and may_fork:
        return [allow]
    if name in TOLD_APART:
        return [_refusal(_ERRORS.get(name, errno.ENETDOWN))]
    if name == "clone":
        return [
            _argument(0),
            _op(_JUMP_ANY_BIT, _CLONE_NAMESPACES, 0, 1),
            refuse,
            _op(_JUMP_ANY_BIT, _CLONE_THREAD, 0, 1),
            allow,
            allow if may_fork else _refusal(errno.EAGAIN),
        ]
    if name == "sendto":  # to whom the pair is connected: without an address, whose halves are both zero
        unnamed = [
            _argument(4),
            _op(_JUMP_EQUAL, 0, 0, 3),
            _argument(4, high=True),
            _op(_JUMP_EQUAL, 0, 0, 1),
        ]
        return [*unnamed, allow, _refusal(errno.ENETDOWN)]
    if name in _COMMANDS:
        place, commands = _COMMANDS[name]
        if name == "prctl" and may_fork:
            commands = (*commands, _PR_SET_PDEATHSIG)
        tests = [_op(_JUMP_EQUAL, command, 0, 1) + allow for command in commands]
        return [_argument(place), *tests, _refusal(errno.ENETDOWN) if name == "socketpair" else refuse]
    zero_too = [_op(_JUMP_EQUAL, 0, 1, 0)] if name == "prlimit64" else []
    return [_argument(0), *zero_too, _op(_JUMP_EQUAL, pid, 0, 1), allow, refuse]


def _argument(place: int, *, high: bool = False) -> bytes:
    """Load the low half of an argument, or the high one."""
    return _op(_LOAD, _ARGUMENTS + 8 * place + 4 * high)


def _refusal(error: int) -> bytes:
    return _op(_RETURN, _ERRNO | error)


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
