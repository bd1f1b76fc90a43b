"""Runs inside the sandbox, after the harness: tests of programs that run in other processes.

One process is kept for many tests. It runs none of them itself: each runs in a fork, which may not fork
again, so that nothing of a test is left for the next one.

A message from the host begins with ``J`` for a job, which only the process that is kept takes, or ``A`` for
an answer of the program, which only a fork takes; an empty one means to give up. A message to the host begins
with ``?`` for what is asked of the program; ``+`` when the test has run to its end, ``=`` for other verdicts,
``x`` for a test that cannot be run apart from its program; ``.`` for the end of the fork.
"""

import ast
import builtins
import collections
import copy
import datetime
import decimal
import fractions
import functools
import gc
import io
import itertools
import json
import marshal
import math
import os
import random
import re
import resource
import string
import sys
import typing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType
    from typing import Any, TypeAlias

    Value: TypeAlias = Any

if "Reader" not in globals():  # in the sandbox, all files of a role are one namespace
    from treeshare.evals.sandbox.candidate import Reader, write_frame
    from treeshare.evals.sandbox.confine import PR_SET_PDEATHSIG, install, prctl
    from treeshare.evals.sandbox.encoder import Refused, as_json
    from treeshare.evals.sandbox.harness import judge, prepared
    from treeshare.evals.sandbox.proxies import Peer

PRELOADED = (collections, copy, datetime, decimal, fractions, itertools, math, re, string, typing)
"""What tests and values need; imported once instead of in each fork."""

KEPT_PACKAGES = {"numpy"}
"""Imported by the process that is kept as soon as a test imports them: that takes a tenth of a second."""

MAX_AT_ONCE = 256
"""Items of a program's iterator that are fetched together, in the end: the first is fetched alone."""

WARM_UPS = 32
"""How often a kept process talks to itself before the first test."""

TESTS = "__tests__"
"""The module name of what a test defines."""

FAILURES = {
    "wrong answer",
    "runtime error",
    "memory limit",
    "process limit",
    "network",
    "file access",
    "forbidden",
}
"""What a program may say of its own exceptions."""

LENT_TO_READ = ("call", "iter", "next", "length", "item", "set item", "truth", "text", "repr", "instance")
LENT_TO_CALL = ("call", "iter", "next", "length", "truth", "instance")


class Unlendable(BaseException):
    """The test gives the program an object that cannot travel: nothing is known of the program."""


def module_of(kind: type) -> object:
    """Where a class was defined, if it says so."""
    return getattr(kind, "__module__", None)


def may_lend(value: "Value") -> None:
    """Functions, iterators, classes, and objects of the test's own classes may be lent to the program."""
    is_own = module_of(type(value)) == TESTS
    if isinstance(value, io.IOBase) or not (is_own or callable(value) or hasattr(type(value), "__next__")):
        raise Unlendable(f"the test gives the program a {type(value).__name__}, which cannot be sent to it")


def may(operation: str, values: "list[Value]") -> None:
    """A lent object may be used, not searched: what the test expects is not to be found from it."""
    target = values[0]
    if module_of(type(target)) != TESTS:
        allowed = operation in LENT_TO_CALL
    elif operation in ("get", "set", "delete"):
        allowed = type(values[1]) is str and not values[1].startswith("_")
    else:
        allowed = operation in LENT_TO_READ
    if not allowed:
        raise AttributeError(f"an object of the test: no {operation}")


def compiled(text: str, name: str) -> "CodeType | Exception":
    """The code of a source, or why there is none; a function whose body is to come has an empty one."""
    try:
        return compile(text, name, "exec", dont_inherit=True)
    except SyntaxError as error:
        if name != "helpers.py":
            return error
    except (ValueError, RecursionError, MemoryError) as error:
        return error
    return compiled(f"{text}    pass\n", "problem.py")


def names_used(text: str) -> set[str]:
    """Every name that a source reads."""
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def names_defined(text: str) -> set[str]:
    """What a module defines at its top, imports left out; nothing if it is no Python."""
    found: set[str] = set()
    try:
        body = ast.parse(text).body
    except SyntaxError:
        return found
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
            found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found


@functools.lru_cache(64)
def readied(
    helpers: str, tests: str, reference: str
) -> "tuple[Value, Value, frozenset[str], frozenset[str]]":
    """A job's code, the names that it reads, and those of them that the reference defines."""
    codes = compiled(helpers, "helpers.py"), compiled(tests, "tests.py")
    used: set[str] = set() if isinstance(codes[1], Exception) else names_used(tests)
    defined = names_defined(reference)
    return *codes, frozenset(used), frozenset(used & defined)


@functools.lru_cache(64)
def packages_of(text: str) -> "frozenset[str]":
    """Those of ``KEPT_PACKAGES`` that a source imports at its top."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return frozenset()
    names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in body if isinstance(node, ast.ImportFrom) and not node.level}
    return frozenset({name.partition(".")[0] for name in names} & KEPT_PACKAGES)


def keep(packages: "frozenset[str]", tried: "set[str]") -> None:
    """Import packages, each once; one that cannot be imported is left to the fork, whose test says so."""
    for name in sorted(packages - tried):
        tried.add(name)
        try:
            __import__(name)
        except Exception:
            continue
        gc.collect()
        gc.freeze()


def run_tests(job: "dict[str, Value]", parts: "tuple[Value, ...]", peer: "Peer") -> None:
    """Run the helpers, then the tests with the program's names in place; an exception is the verdict."""
    helpers, tests, used, defined = parts
    for code in (helpers, tests):
        if isinstance(code, Exception):
            raise code
    namespace: dict[str, Value] = {"__name__": TESTS}
    exec(helpers, namespace)
    own_classes = {
        name for name, value in namespace.items() if isinstance(value, type) and module_of(value) == TESTS
    }
    unknown = used - namespace.keys() - vars(builtins).keys()
    wanted = {*job["names"], *defined, *own_classes, *unknown}
    for name in wanted:
        namespace.pop(name, None)
    found = peer.ask("names", sorted(wanted))
    if type(found) is not dict:
        raise Refused("names that are none")
    namespace |= {name: found[name] for name in wanted & found.keys()}
    exec(tests, namespace)


def verdict_on(error: "BaseException") -> "tuple[str, str]":
    """What it means that a test has ended with an exception."""
    origin = getattr(error, "__dict__", {}).get("_treeshare_origin")
    if origin is not None:
        return origin[0] if origin[0] in FAILURES else "runtime error", str(origin[1])
    if isinstance(error, Refused):
        return "wrong answer", f"returned what cannot be read: {error}"
    return judge(error)


def examine(job: "dict[str, Value]", parts: "tuple[Value, ...]", reader: "Reader", outgoing: int) -> None:
    """In the fork: run a test and say what came of it."""

    def receive() -> "list[Value]":
        frame = reader.message()
        if frame[:1] != b"A":
            os._exit(0)
        try:
            message = json.loads(frame[1:])
        except (ValueError, RecursionError) as error:
            raise Refused(f"a message that cannot be read: {type(error).__name__}") from error
        if type(message) is not list or len(message) not in (3, 5, 8) or message[0] not in ("?", "=", "!"):
            raise Refused("a message of no known form")
        return message

    def send(message: "list[Value]") -> None:
        write_frame(outgoing, b"?" + marshal.dumps(message, 2))

    peer = Peer(receive, send, may, may_lend, max_at_once=MAX_AT_ONCE)
    try:
        run_tests(job, parts, peer)
    except Unlendable as error:
        write_frame(outgoing, b"x" + str(error).encode("utf-8", "backslashreplace"))
    except BaseException as error:
        text = "\n".join(verdict_on(error)).encode("utf-8", "backslashreplace")
        write_frame(outgoing, b"=" + text[:4000])
    else:
        write_frame(outgoing, b"+")


def confine_fork(code: bytes, mark: bytes, cpu_s: int) -> None:
    """Give up forking, have the same random numbers as every fork, and die with the process that is kept."""
    prctl(PR_SET_PDEATHSIG, 9)
    random.seed(0)  # the same test for every program
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    install(bytearray(code.replace(mark, os.getpid().to_bytes(4, "little"))))


def warm_up() -> None:
    """Hold a conversation with oneself: what Python learns of this code, it learns once, not in each fork."""
    sent: list[bytes] = []
    program = Peer(lambda: marshal.loads(sent.pop()), lambda message: sent.append(as_json(message)))

    def receive() -> "list[Value]":
        program.answer(program.receive())
        message: list[Value] = json.loads(sent.pop())
        return message

    test = Peer(receive, lambda message: sent.append(marshal.dumps(message, 2)), may, may_lend)
    echo = test.borrow(program.lend(lambda *values: values))
    for number in range(WARM_UPS):
        assert echo([number, "text"], {1: (2.5, None, True)}) == ([number, "text"], {1: (2.5, None, True)})


def examiner_main() -> None:
    """Limit, then fork for each job."""
    spec, _, _ = prepared()
    reader, outgoing = Reader(int(spec["incoming"])), int(spec["outgoing"])
    mark = int(spec["pid_mark"]).to_bytes(4, "little")
    with open(int(spec["fork_filter"]), "rb") as file:
        code = file.read()
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):  # what tests print counts for nobody
        os.dup2(nowhere, descriptor)
    warm_up()
    gc.collect()
    gc.freeze()
    tried: set[str] = set()
    while True:
        frame = reader.message()
        if frame[:1] != b"J":
            continue
        job = json.loads(frame[1:])
        parts = readied(job["helpers"], job["tests"], job["reference"])
        keep(packages_of(job["tests"]), tried)
        child = os.fork()
        if child == 0:
            try:
                confine_fork(code, mark, job["cpu_s"])
                examine(job, parts, reader, outgoing)
            finally:
                sys.stderr.flush()
                os._exit(0)
        _, status = os.waitpid(child, 0)
        write_frame(outgoing, b"." + str(os.waitstatus_to_exitcode(status)).encode())
