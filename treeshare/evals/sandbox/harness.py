"""Runs inside the sandbox, before and around the program; standard library only, never imported.

Arguments: the program's file descriptor, the report's, and the limits as JSON. The first line of the
program's file is a nonce; the report repeats it, so a program cannot report by accident, nor by leaving
early. A program that goes looking for it in this process can find it: that is cheating at a test, not an
escape.
"""

import errno
import json
import os
import resource
import sys


def limit(limits: dict[str, int]) -> None:
    """Lower every limit for good, then give up root."""
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, limits["cpu_s"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
    ):
        resource.setrlimit(kind, (value, value))
    uid = limits["uid"]
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def classify(error: BaseException, text: str) -> str:
    """The verdict that an exception at the end of a program stands for."""
    if isinstance(error, AssertionError):
        return "wrong answer"
    if isinstance(error, MemoryError):
        return "memory limit"
    if isinstance(error, BlockingIOError) or "can't start new thread" in text:
        return "process limit"
    if isinstance(error, OSError):
        return classify_os_error(error)
    return "runtime error"


def classify_os_error(error: OSError) -> str:
    """The same for what the operating system refused."""
    no_network = (errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
    if type(error).__name__ in ("gaierror", "herror", "URLError") or error.errno in no_network:
        return "network"
    if error.errno == errno.ECONNREFUSED:
        return "network"
    if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.ENOENT):
        return "file access"
    if error.errno in (errno.EACCES, errno.EPERM):
        return "file access" if error.filename else "forbidden"
    return "runtime error"


def describe(error: BaseException) -> str:
    """One line on an exception, whatever its ``__str__`` does."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return " ".join(f"{type(error).__name__}: {text}".split())[:300]


def main() -> None:
    """Limit, run, report."""
    source, report, limits = int(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    with open(source, "rb") as file:
        nonce, program = file.read().split(b"\n", 1)
    limit(limits)
    del sys.argv[1:]
    first_process = os.getpid()
    try:
        exec(compile(program, "program.py", "exec"), {})
        verdict, detail = "passed", ""
    except BaseException as error:
        detail = describe(error)
        verdict = classify(error, detail)
    if os.getpid() == first_process:
        line = json.dumps({"nonce": nonce.decode(), "verdict": verdict, "detail": detail})
        os.write(report, line.encode())
    try:
        sys.stdout.flush()
    finally:
        os._exit(0)


main()
