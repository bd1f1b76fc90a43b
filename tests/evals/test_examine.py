"""Tests that run apart from the program: what passes, what does not, and what is left of either."""

from __future__ import annotations

import os
import random
import threading
import time
from pathlib import Path

import pytest

from tests.evals.cheats import BROKEN_MESSAGES, CHEATS, EQUALITY, SEND, TEST
from tests.evals.returned_values import HONEST, LIBRARIES, program_of, runner_of
from tests.processes import child_ids
from treeshare.errors import DataError
from treeshare.evals.sandbox import Limits, OutsideTests, SandboxError, Verdict

LIMITS = Limits(wall_s=20.0, memory_bytes=256 << 20)
TOTAL = OutsideTests(source=TEST, names=("total",))
RIGHT = "def total(n):\n return sum(n)\n"
LIARS = [name for name in CHEATS if name.endswith("equal to everything") and "Decimal" not in name]


def marks(execution):
    """The letters that a test of ``returned_values`` ends with."""
    return execution.detail.removeprefix("AssertionError: ")


@pytest.mark.parametrize(
    "cases", [HONEST, pytest.param(LIBRARIES, marks=pytest.mark.slow)], ids=["builtin", "libraries"]
)
def test_honest_values_are_worth_what_they_are_in_the_tests_own_process(sandbox, cases):
    program, test = program_of(cases), runner_of(cases)
    limits = Limits(wall_s=60.0)
    plain = marks(sandbox.run(program + test, limits=limits, as_main=False))
    names = tuple(f"f{number}" for number in range(len(cases)))
    apart = marks(sandbox.examine(program, OutsideTests(source=test, names=names), limits=limits))
    assert len(plain) == len(cases)
    assert set(plain) >= {"P", "E"}
    assert [
        (ours, theirs, case) for ours, theirs, case in zip(apart, plain, cases, strict=True) if ours != theirs
    ] == []


def test_a_package_that_is_kept_is_each_tests_own(sandbox):
    """What a test does to it is gone with its fork; one that is not there fails the test that imports it."""
    spoils = "import numpy as np\nassert total([np.int64(2), 3]) == 5\nnp.left_over = 1\nnp.sum = None\n"
    looks = "import numpy as np\nassert not hasattr(np, 'left_over') and np.sum([1, 2]) == total([1, 2])\n"
    lacks = "import numpy.no_such_part\n"
    for source, is_right in ((spoils, True), (looks, True), (lacks, False), (spoils, True), (looks, True)):
        execution = sandbox.examine(RIGHT, OutsideTests(source=source, names=("total",)), limits=LIMITS)
        assert (execution.verdict is Verdict.PASSED) == is_right, execution.detail


def cheat(sandbox, name):
    execution = sandbox.examine(CHEATS[name], TOTAL, limits=LIMITS)
    assert execution.verdict is not Verdict.PASSED
    assert execution.detail
    assert execution.detail.isprintable()


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass(any_sandbox, name):
    cheat(any_sandbox, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEATS)
def test_cheats_do_not_pass_in_any_sandbox(sandbox, name):
    cheat(sandbox, name)


MORE_NAMES = """
import sys
inside = sys._getframe(1).f_globals
answer = inside["Peer"].returned
def returned(peer, value, *rest):
    more = {"abs": lambda x: 0.0, "math": None, "__builtins__": {}} if type(value) is dict else None
    return answer(peer, dict(value, **more) if more else value, *rest)
inside["Peer"].returned = returned
def total(n): return 5
"""


def test_a_program_gives_only_the_names_that_it_is_asked_for(any_sandbox):
    close = OutsideTests(source="import math\nassert abs(total([1]) - math.e) < 1e-6\n", names=("total",))
    execution = any_sandbox.examine(MORE_NAMES, close, limits=LIMITS)
    assert (execution.verdict, execution.detail) == (Verdict.WRONG_ANSWER, "AssertionError")


BORN_IN_THE_TEST = """
import sys
inside = sys._getframe(1).f_globals
peers = []
opened = inside["Peer"].opened
def noted(peer, *rest):
    peers[:] = [peer]
    return opened(peer, *rest)
inside["Peer"].opened = noted
def total(n):
    ask = peers[0].ask
    def same(*values): return True
    made = ask("call", [type, "E", (), {"__eq__": same, "__call__": same, "__hash__": None}])
    return ask("call", [made])
"""


def test_a_program_makes_no_objects_in_the_tests_process(any_sandbox):
    """Whose methods would be the program's, and which it could return."""
    execution = any_sandbox.examine(
        BORN_IN_THE_TEST, OutsideTests(source=EQUALITY, names=("total",)), limits=LIMITS
    )
    assert execution.verdict is Verdict.RUNTIME_ERROR
    assert execution.detail == "Exception: an operation on nothing that was lent"


def test_the_cheats_are_some(any_sandbox):
    """Positive control: beside its test each of these passes, and the right program does apart from it."""
    assert len(LIARS) >= 12
    for name in LIARS[::4]:
        program = CHEATS[name]
        assert any_sandbox.run(program + EQUALITY, limits=LIMITS, as_main=False).verdict is Verdict.PASSED
    assert any_sandbox.examine(RIGHT, TOTAL, limits=LIMITS).verdict is Verdict.PASSED


@pytest.mark.parametrize("message", [BROKEN_MESSAGES[place] for place in (0, 1, 3, 5, -3)])
def test_messages_in_place_of_answers_end_the_test(sandbox, message):
    execution = sandbox.examine(SEND.format(text=message), TOTAL, limits=LIMITS)
    assert execution.verdict in (Verdict.WRONG_ANSWER, Verdict.RUNTIME_ERROR)


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("def total(n):\n while True: pass", Verdict.TIMEOUT),
        ("while True: pass", Verdict.TIMEOUT),
        ("def total(n):\n import os\n os.closerange(0, 64)\n while True: pass", Verdict.TIMEOUT),
        (
            SEND.format(text=b"x").replace("len(text)", "(99)").replace("return None", "while True: pass"),
            Verdict.TIMEOUT,
        ),
        ("def total(n):\n while True: yield 1", Verdict.WRONG_ANSWER),
        ("def total(n):\n return [0] * (1 << 40)", Verdict.MEMORY),
        ("def total(n):\n x = []\n while True: x.append(bytearray(1 << 20))", Verdict.MEMORY),
        ("def total(n):\n return 'x' * (5 << 20)", Verdict.OUTPUT_LIMIT),
        ("def total(n):\n while True: print('x' * 100000)", Verdict.OUTPUT_LIMIT),
        ("def total(n):\n import os\n return os.fork()", Verdict.PROCESS_LIMIT),
        ("def total(n):\n import ctypes\n ctypes.string_at(0)", Verdict.RUNTIME_ERROR),
        ("def total(n):\n raise OSError(28, 'full')", Verdict.FILE_ACCESS),
        ("", Verdict.RUNTIME_ERROR),
        ("total = 3", Verdict.RUNTIME_ERROR),
        ("def total(:", Verdict.RUNTIME_ERROR),
        ("raise SystemExit(0)", Verdict.RUNTIME_ERROR),
    ],
)
def test_verdicts_are_those_of_a_program_beside_its_test(sandbox, program, verdict):
    began = time.monotonic()
    wall_s = 0.5 if verdict is Verdict.TIMEOUT else 20.0
    execution = sandbox.examine(program, TOTAL, limits=Limits(wall_s=wall_s, memory_bytes=160 << 20))
    assert execution.verdict is (verdict or execution.verdict)
    assert execution.verdict is not Verdict.PASSED
    assert execution.detail
    assert time.monotonic() - began < 40


def test_what_the_test_itself_takes_is_limited(sandbox):
    for source, verdict in (
        ("print('x' * (20 << 20))", Verdict.PASSED),
        ("while True: pass", Verdict.TIMEOUT),
        ("list(f())", Verdict.TIMEOUT),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", Verdict.MEMORY),
        ("import ctypes; ctypes.string_at(0)", Verdict.RUNTIME_ERROR),
        ("import os; os.fork()", Verdict.PROCESS_LIMIT),
        ("import os; os._exit(0)", Verdict.RUNTIME_ERROR),
        ("raise SystemExit(0)", Verdict.RUNTIME_ERROR),
        ("def g(:", Verdict.RUNTIME_ERROR),
        ("import socket; socket.socket()", Verdict.NETWORK),
    ):
        limits = Limits(wall_s=0.5 if verdict is Verdict.TIMEOUT else 20.0, memory_bytes=160 << 20)
        program = "def f():\n while True: yield 0\n"
        execution = sandbox.examine(program, OutsideTests(source=source, names=("f",)), limits=limits)
        assert (execution.verdict, source) == (verdict, source)
        assert bool(execution.detail) is (verdict is not Verdict.PASSED)
    assert sandbox.examine(RIGHT, TOTAL, limits=limits).verdict is Verdict.PASSED


def test_a_test_leaves_nothing_for_the_next_one(any_sandbox):
    """The very process is kept, and a test that changes everything changes nothing for others."""
    soil = OutsideTests(
        source="import builtins, json, math, os, random, sys\n"
        "math.isclose = json.loads = os.fork = lambda *a, **k: True\nbuiltins.AssertionError = Exception\n"
        "builtins.abs = lambda x: 1\nrandom.seed(7)\nsys.setrecursionlimit(60)\nsys.modules.clear()\n"
        "sys.meta_path.clear()\nos.closerange(0, 3)\nos.chdir('/')\nos.environ['X'] = 'Y'\n"
    )
    look = OutsideTests(
        source="import math, os, random, sys\n"
        "assert False, [math.isclose(1, 2), abs(-2), random.random(), sys.getrecursionlimit(), "
        "'X' in os.environ, os.getppid()]\n"
    )
    before = any_sandbox.examine("", look, limits=LIMITS).detail
    for _ in range(2):
        assert any_sandbox.examine("", soil, limits=LIMITS).verdict is Verdict.PASSED
        assert any_sandbox.examine("", look, limits=LIMITS).detail == before
    assert before.startswith(f"AssertionError: [False, 2, {random.Random(0).random()}, 1000, False, ")


def test_it_is_replaced_when_it_dies_and_gone_when_released(any_sandbox):
    any_sandbox.release()
    others = set(child_ids("self"))
    assert any_sandbox.examine(RIGHT, TOTAL, limits=LIMITS).verdict is Verdict.PASSED
    (kept,) = set(child_ids("self")) - others
    os.kill(int(kept), 9)
    while Path(f"/proc/{kept}/stat").read_text().split()[2] != "Z":
        time.sleep(0.01)
    assert any_sandbox.examine(RIGHT, TOTAL, limits=LIMITS).verdict is Verdict.PASSED
    (second,) = set(child_ids("self")) - others
    assert second != kept
    found = []
    thread = threading.Thread(
        target=lambda: found.append(any_sandbox.examine(RIGHT, TOTAL, limits=Limits(wall_s=19)))
    )
    thread.start()
    thread.join()
    assert found[0].verdict is Verdict.PASSED
    assert any_sandbox.examine(RIGHT, TOTAL, limits=Limits(wall_s=19)).verdict is Verdict.PASSED
    any_sandbox.release()
    assert set(child_ids("self")) == others


def test_whose_name_is_whose(any_sandbox):
    tests = OutsideTests(
        helpers="class Box:\n def __init__(self, n): self.n = n\ndef twice(n): return 2 * n\ndef f(n):\n",
        source="assert f(Box(3)).n == twice(3) and isinstance(f(Box(1)), Box)\n"
        "assert sum([1]) == 1 and extra == 5\nassert own(1) == 'own'\n",
        names=("f",),
        reference="import math\ndef own(n): pass\n",
    )
    program = (
        "class Box:\n def __init__(self, n): self.n = n\ndef twice(n): return 0\n"
        "def sum(x): return 9\nextra = 5\ndef f(box): return Box(box.n * 2)\ndef own(n): return 'own'\n"
    )
    execution = any_sandbox.examine(program, tests, limits=LIMITS)
    assert (execution.verdict, execution.detail) == (Verdict.PASSED, "")


def test_a_test_that_gives_what_cannot_travel_is_told(any_sandbox):
    tests = OutsideTests(source="import io\nf(io.StringIO('x'))\n", names=("f",))
    with pytest.raises(DataError, match="gives the program a StringIO, which cannot be sent to it"):
        any_sandbox.examine("def f(x): return x.read()\n", tests, limits=LIMITS)


def test_a_closed_sandbox_examines_nothing(any_sandbox):
    closed = type(any_sandbox)()
    closed.close()
    with pytest.raises(SandboxError, match="closed"):
        closed.examine(RIGHT, TOTAL, limits=LIMITS)
