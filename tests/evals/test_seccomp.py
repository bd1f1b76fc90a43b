"""The system-call filter against libseccomp's tables, and that every path of it ends."""

from __future__ import annotations

import errno
import platform
import struct

import pytest

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.seccomp import filter_program
from treeshare.evals.sandbox.syscalls import JUDGED, NEWEST, OWN_FILES, PLAIN, TOLD_APART

SYSCALLS = PLAIN | OWN_FILES | JUDGED | TOLD_APART
RETURN, JUMP_CLASS, CLASS_MASK = 0x06, 0x05, 0x07


@pytest.mark.parametrize(("column", "arch"), [(0, "X86_64"), (1, "AARCH64")])
def test_numbers_are_libseccomps(column, arch):
    pyseccomp = pytest.importorskip("pyseccomp")
    newer_than_the_library = set()
    for name, numbers in SYSCALLS.items():
        known = pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, arch), name)
        if known == -1:
            newer_than_the_library.add(name)
            continue
        assert numbers[column] == (known if known >= 0 else None), name
    assert newer_than_the_library <= {"fchmodat2", "futex_waitv"}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("metadata", [False, True])
def test_the_filter_is_well_formed(monkeypatch, machine, metadata):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    code = list(struct.iter_unpack("=HBBI", filter_program(metadata=metadata)))
    assert len(code) < 4096
    for place, (operation, if_true, if_false, _) in enumerate(code):
        if operation & CLASS_MASK == JUMP_CLASS:
            assert place + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == RETURN


ALLOWED, ERRNO, KILLED = 0x7FFF0000, 0x00050000, 0x80000000
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
PID = 4321


def verdict_of(code, arch, number, *arguments):
    """What the kernel would do with a call: the filter, run by an interpreter of its own."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *(arguments + (0,) * 6)[:6])
    place = value = 0
    while True:
        operation, if_true, if_false, operand = code[place]
        place += 1
        if operation == RETURN:
            return operand
        if operation == 0x20:
            value = struct.unpack_from("=I", data, operand)[0]
            continue
        holds = {0x15: value == operand, 0x35: value >= operand, 0x45: bool(value & operand)}[operation]
        place += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("metadata", [False, True])
@pytest.mark.parametrize("may_fork", [False, True])
def test_only_what_is_listed_is_allowed(monkeypatch, machine, metadata, may_fork):
    """Every number that there can be, run through the filter; the tables say what is right."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    column, arch = ARCHITECTURES[machine]
    code = list(struct.iter_unpack("=HBBI", filter_program(pid=PID, metadata=metadata, may_fork=may_fork)))
    listed = PLAIN if metadata else PLAIN | OWN_FILES
    always = {numbers[column] for numbers in listed.values()} - {None}
    by_arguments = {numbers[column] for numbers in (JUDGED | TOLD_APART).values()} - {None}
    assert not always & by_arguments
    for number in range(1024):
        if number not in by_arguments:
            refusal = ERRNO | (errno.ENOSYS if number > NEWEST else errno.EPERM)
            assert verdict_of(code, arch, number) == (ALLOWED if number in always else refusal), number
    assert verdict_of(code, arch ^ 1, 0) == KILLED
    if machine == "x86_64":
        assert verdict_of(code, arch, 0x40000000) == KILLED


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize("may_fork", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments", "error"),
    [
        ("sendto", (3, 1, 1, 0, 0, 0), None),
        ("sendto", (3, 1, 1, 0, 0x1000, 110), errno.ENETDOWN),
        ("sendto", (3, 1, 1, 0, 1 << 32, 110), errno.ENETDOWN),
        ("connect", (), errno.ENETDOWN),
        ("sendmsg", (), errno.ENETDOWN),
        ("socketpair", (1, 2), None),
        ("socketpair", (30, 2), errno.ENETDOWN),
        ("kill", (PID, 9), None),
        ("kill", (0, 9), errno.EPERM),
        ("kill", (2**64 - 1, 9), errno.EPERM),
        ("tgkill", (PID + 1, PID, 9), errno.EPERM),
        ("prlimit64", (0,), None),
        ("prlimit64", (1,), errno.EPERM),
        ("fcntl", (3, 3), None),
        ("fcntl", (3, 6), errno.EPERM),
        ("fcntl", (3, 37), errno.EPERM),
        ("fcntl", (3, 1024), errno.EPERM),
        ("fcntl", (3, 1031), errno.EPERM),
        ("ioctl", (1, 0x5401), None),
        ("ioctl", (1, 0x5412), errno.EPERM),
        ("prctl", (15,), None),
        ("prctl", (36,), errno.EPERM),
        ("clone", (0x00010F00,), None),
        ("clone", (0x10010F00,), errno.EPERM),
        ("clone3", (), errno.ENOSYS),
    ],
)
def test_calls_are_judged_by_their_arguments(monkeypatch, machine, may_fork, name, arguments, error):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    column, arch = ARCHITECTURES[machine]
    code = list(struct.iter_unpack("=HBBI", filter_program(pid=PID, metadata=True, may_fork=may_fork)))
    number = SYSCALLS[name][column]
    assert verdict_of(code, arch, number, *arguments) == (ALLOWED if error is None else ERRNO | error)


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_who_may_fork(monkeypatch, machine):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    column, arch = ARCHITECTURES[machine]
    for may_fork in (False, True):
        code = list(struct.iter_unpack("=HBBI", filter_program(metadata=True, may_fork=may_fork)))
        found = verdict_of(code, arch, JUDGED["clone"][column], 0x01200011)
        assert found == (ALLOWED if may_fork else ERRNO | errno.EAGAIN)
        found = verdict_of(code, arch, JUDGED["prctl"][column], 1, 9)
        assert found == (ALLOWED if may_fork else ERRNO | errno.EPERM)


def test_an_unknown_machine_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(SandboxUnavailableError, match="no system-call filter for vax"):
        filter_program(metadata=True)
