"""Runs inside the sandbox, before the harness: gives up root, then files, then system calls.

Standard library only, never imported by treeshare.
"""

import ctypes
import os

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
VERSION, PATH_BENEATH = 1, 1
WRITE_FILE, READ_FILE, READ_DIR = 1 << 1, 1 << 2, 1 << 3
FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Kinds of access that a version of Landlock knows; 16 from version 5 on."""
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 8, 22, 38
SECCOMP_MODE_FILTER = 2
DAC_READ_SEARCH = 1 << 2
CAPABILITY_VERSION = 0x20080522

library = ctypes.CDLL(None, use_errno=True)


def checked(what: str, result: int) -> int:
    """``result``, unless it says that a call failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def prctl(option: int, value: object) -> None:
    """Change an attribute of this process, or raise."""
    checked(f"prctl {option}", library.prctl(option, value, 0, 0, 0))


def ruleset(readable: list[str]) -> int:
    """A Landlock ruleset under which only ``readable`` can be read, and nothing written or executed."""
    version = checked("landlock", library.syscall(CREATE_RULESET, None, 0, VERSION))
    words = [(1 << FILE_RIGHTS.get(version, 16)) - 1, 3 if version >= 4 else 0, 3 if version >= 6 else 0]
    handled = b"".join(word.to_bytes(8, "little") for word in words)
    rules = checked("landlock", library.syscall(CREATE_RULESET, handled, len(handled), 0))
    for path in readable:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
        rights |= WRITE_FILE if path == "/dev/null" else 0
        rule = rights.to_bytes(8, "little") + descriptor.to_bytes(4, "little")
        checked(path, library.syscall(ADD_RULE, rules, PATH_BENEATH, rule, 0))
        os.close(descriptor)
    return rules


def drop_root(uid: int, keep_reading: bool) -> None:
    """Become another user; ``keep_reading`` keeps the right to read what Landlock allows to be read."""
    prctl(PR_SET_KEEPCAPS, int(keep_reading))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    kept = DAC_READ_SEARCH if keep_reading else 0
    header = CAPABILITY_VERSION.to_bytes(4, "little") + bytes(4)
    low = kept.to_bytes(4, "little") * 2 + bytes(4)
    checked("capset", library.capset(header, low + bytes(12)))


def confine(spec: dict[str, str]) -> None:
    """Give up, for good, whatever ``spec`` does not grant."""
    with open(int(spec["filter"]), "rb") as file:
        code = bytearray(file.read())
    mark = int(spec["pid_mark"]).to_bytes(4, "little")
    code = code.replace(mark, os.getpid().to_bytes(4, "little"))
    rules = ruleset(spec["landlock"].split(":"))
    if int(spec["uid"]):
        drop_root(int(spec["uid"]), spec["keep_reading"] == "1")
    prctl(PR_SET_PDEATHSIG, 9)
    if os.getppid() != int(spec["parent"]):
        os._exit(1)
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    checked("landlock", library.syscall(RESTRICT_SELF, rules, 0))
    os.close(rules)
    install(code)


def install(code: bytearray) -> None:
    """Put a system-call filter on top of those that there are."""
    text = (ctypes.c_char * len(code)).from_buffer(code)

    class Filter(ctypes.Structure):
        """The kernel's sock_fprog."""

        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    program = Filter(len(code) // 8, ctypes.addressof(text))
    pointer = ctypes.byref(program)
    checked("seccomp", library.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, pointer, 0, 0))
