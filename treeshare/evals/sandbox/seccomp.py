"""A system-call filter for a program that is to stay one process, without network or hidden memory.

It denies by name what namespaces, Landlock and rlimits leave open: starting processes (which would multiply
the memory limit), sockets of every family (Landlock leaves UDP open, network namespaces vsock), memory that
no limit counts (System V segments, memfds, keys), other processes, and kernel interfaces that a test program
never needs. The result is classic BPF as the kernel takes it. ``tests/evals/test_seccomp.py`` compares the
numbers with libseccomp's.
"""

from __future__ import annotations

import errno
import platform
import struct

from treeshare.errors import SandboxUnavailableError

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Per machine, the column of ``SYSCALLS`` and the kernel's AUDIT_ARCH value."""

SYSCALLS: dict[str, tuple[int | None, int | None]] = {
    "clone": (56, 220),
    "fork": (57, None),
    "vfork": (58, None),
    "clone3": (435, 435),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "prctl": (157, 167),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "truncate": (76, 45),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utime": (132, None),
    "utimes": (235, None),
    "futimesat": (261, None),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "setxattrat": (463, 463),
    "removexattrat": (466, 466),
}
"""Numbers on x86_64 and aarch64; None where there is no such call."""

_METADATA = list(SYSCALLS)[list(SYSCALLS).index("truncate") :]
_OWN_PROCESS = ("kill", "tgkill", "prlimit64")
_ERRORS = {
    "fork": errno.EAGAIN,
    "vfork": errno.EAGAIN,
    "clone3": errno.ENOSYS,  # the C library then falls back on clone, whose flags a filter can see
    "socket": errno.ENETDOWN,
}

_CLONE_THREAD = 0x00010000
_CLONE_NAMESPACES = 0x7E020080
_PR_SET_PDEATHSIG = 1
_DENIED_COMMANDS = {
    "fcntl": (8, 15),  # F_SETOWN, F_SETOWN_EX: signals to any process of the same user
    "ioctl": (0x8901, 0x8902, 0x5412),  # FIOSETOWN, SIOCSPGRP; TIOCSTI: typing into a terminal
}
_X32_BIT = 0x40000000

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24

_OP_BYTES = 8

PID_MARK = 0x7FEDCBA9
"""Stands for the process's own id where that is not known yet; the process puts it in."""


def filter_program(*, pid: int = PID_MARK, metadata: bool, may_fork: bool = False) -> bytes:
    """The filter for this machine.

    Args:
        pid: The process's own id, as it sees it: the only one it may signal.
        metadata: Whether to deny changing modes, owners, times, attributes and lengths by path, which
            Landlock does not.
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
    for name, numbers in SYSCALLS.items():
        number = numbers[column]
        if number is None or (name in _METADATA and not metadata):
            continue
        if may_fork and name in ("fork", "prctl"):
            continue
        rule = b"".join(_rule(name, pid, may_fork=may_fork))
        code += [_op(_JUMP_EQUAL, number, 0, len(rule) // _OP_BYTES), rule]
    return b"".join([*code, _op(_RETURN, _ALLOW)])


def _rule(name: str, pid: int, *, may_fork: bool) -> list[bytes]:
    """What to do with a call, once it is known to be ``name``; ends in a return on every path."""
    load, allow, refuse = _op(_LOAD, _ARG0), _op(_RETURN, _ALLOW), _op(_RETURN, _ERRNO | errno.EPERM)
    if name == "clone":
        again = allow if may_fork else _op(_RETURN, _ERRNO | errno.EAGAIN)
        return [
            load,
            _op(_JUMP_ANY_BIT, _CLONE_NAMESPACES, 0, 1),
            refuse,
            _op(_JUMP_ANY_BIT, _CLONE_THREAD, 0, 1),
            allow,
            again,
        ]
    if name in _OWN_PROCESS:
        zero_too = [_op(_JUMP_EQUAL, 0, 1, 0)] if name == "prlimit64" else []
        return [load, *zero_too, _op(_JUMP_EQUAL, pid, 0, 1), allow, refuse]
    if name == "prctl":
        return [load, _op(_JUMP_EQUAL, _PR_SET_PDEATHSIG, 0, 1), refuse, allow]
    if name in _DENIED_COMMANDS:
        commands = [_op(_JUMP_EQUAL, command, 0, 1) + refuse for command in _DENIED_COMMANDS[name]]
        return [_op(_LOAD, _ARG1), *commands, allow]
    return [_op(_RETURN, _ERRNO | _ERRORS.get(name, errno.EPERM))]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)
