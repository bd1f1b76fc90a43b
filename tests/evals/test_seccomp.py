"""The system-call filter against libseccomp's tables, and that every path of it ends."""

from __future__ import annotations

import platform
import struct

import pytest

from treeshare.errors import SandboxUnavailableError
from treeshare.evals.sandbox.seccomp import SYSCALLS, filter_program

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
    assert newer_than_the_library <= {
        "setxattrat",
        "removexattrat",
        "fchmodat2",
        "mount_setattr",
        "memfd_secret",
    }


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


def test_an_unknown_machine_is_refused(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "vax")
    with pytest.raises(SandboxUnavailableError, match="no system-call filter for vax"):
        filter_program(metadata=True)
