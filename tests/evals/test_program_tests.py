"""Programs on tests: verdicts of right, mutated and odd solutions; the answers stay outside."""

from __future__ import annotations

import json

import pytest

from treeshare.errors import ConfigError
from treeshare.evals.matching import TokenMatcher, UnknownMatcher
from treeshare.evals.program_tests import CallCase, ProgramTests, StdinCase, check_program, summed_up
from treeshare.evals.sandbox import Limits, Verdict

SUMS = ProgramTests(cases=[StdinCase(stdin=f"{n}\n1 {n}\n", expected=str(n + 1)) for n in range(1, 4)])
CALLS = ProgramTests(cases=[CallCase(args=[1, n], expected=n + 1) for n in range(1, 4)], entry_point="add")
LIMITS = Limits(wall_s=1.0, memory_bytes=256 << 20)

STDIN_SOLUTION = "input()\na, b = map(int, input().split())\n"
STDIN_MUTANTS = {
    "print(a + b)": Verdict.PASSED,
    "print(a + b)\nexit()": Verdict.PASSED,
    "print(a + b)\nimport os, sys\nsys.stdout.flush()\nos._exit(0)": Verdict.PASSED,
    "print(f' {a + b} \\n\\n')": Verdict.PASSED,
    "print(a + b + 1)": Verdict.WRONG_ANSWER,
    "pass": Verdict.WRONG_ANSWER,
    "print(float(a + b))": Verdict.WRONG_ANSWER,
    "print(a + b, a)": Verdict.WRONG_ANSWER,
    "print(a + b)\nraise SystemExit(1)": Verdict.RUNTIME_ERROR,
    "print(a + b)\n1 / 0": Verdict.RUNTIME_ERROR,
    "print(a + b)\ninput()": Verdict.RUNTIME_ERROR,
    "print(a + b)\nassert False": Verdict.RUNTIME_ERROR,
    "print(a + c)": Verdict.RUNTIME_ERROR,
    "print(a + b": Verdict.RUNTIME_ERROR,
    "print(a + b, flush=True)\nwhile True: pass": Verdict.TIMEOUT,
    "print(a + b)\nx = bytearray(1 << 30)": Verdict.MEMORY,
    "while True: print('x' * 9999)": Verdict.OUTPUT_LIMIT,
    "print(a + b)\nimport os\nos.fork()": Verdict.PROCESS_LIMIT,
    "import socket\nsocket.create_connection(('127.0.0.1', 9))": Verdict.NETWORK,
    "print(open('/etc/shadow').read())": Verdict.FILE_ACCESS,
    "import os\nos.kill(os.getppid(), 9)": Verdict.FORBIDDEN,
}
CALL_MUTANTS = {
    "def add(a, b): return a + b": Verdict.PASSED,
    "print('noise')\ndef add(a, b):\n print(a)\n return a + b": Verdict.PASSED,
    "def add(a, b): return a + b + 1": Verdict.WRONG_ANSWER,
    "def add(a, b): pass": Verdict.WRONG_ANSWER,
    "def add(a, b): return str(a + b)": Verdict.WRONG_ANSWER,
    "def add(a, b): return {a + b}": Verdict.WRONG_ANSWER,
    "def add(a, b): return print": Verdict.WRONG_ANSWER,
    "def add(a, b): return 10 ** 9999": Verdict.WRONG_ANSWER,
    "def add(a, b):\n x = 1\n for _ in range(9999): x = [x]\n return x": Verdict.WRONG_ANSWER,
    "class Any:\n __eq__ = lambda *_: True\ndef add(a, b): return Any()": Verdict.WRONG_ANSWER,
    "def add(a, b): assert False": Verdict.RUNTIME_ERROR,
    "def add(a, b): raise KeyError(a)": Verdict.RUNTIME_ERROR,
    "def sub(a, b): return a - b": Verdict.RUNTIME_ERROR,
    "def add(a): return a": Verdict.RUNTIME_ERROR,
    "add = 3": Verdict.RUNTIME_ERROR,
    "def add(a, b):\n while True: pass": Verdict.TIMEOUT,
    "import sys\nsys.exit(0)\ndef add(a, b): return a + b": Verdict.RUNTIME_ERROR,
}


@pytest.mark.parametrize("mutant", STDIN_MUTANTS)
def test_stdin_programs(any_sandbox, mutant):
    results = check_program(STDIN_SOLUTION + mutant, SUMS, any_sandbox, limits=LIMITS)
    assert [result.verdict for result in results] == (
        [Verdict.PASSED] * 3 if STDIN_MUTANTS[mutant] is Verdict.PASSED else [STDIN_MUTANTS[mutant]]
    ), results
    summary = summed_up(results, SUMS)
    assert summary.verdict is STDIN_MUTANTS[mutant]
    assert summary.passed or summary.detail.startswith("test 1 of 3: ")


@pytest.mark.parametrize("mutant", CALL_MUTANTS)
def test_calls(any_sandbox, mutant):
    results = check_program(mutant, CALLS, any_sandbox, limits=LIMITS)
    assert summed_up(results, CALLS).verdict is CALL_MUTANTS[mutant], results


def test_input_is_a_file_and_output_is_whole(any_sandbox):
    """Also where both are larger than any pipe."""
    text = "".join(f"{number}\n" for number in range(300_000))
    program = "import os, sys\nsys.stdout.write(os.read(0, os.fstat(0).st_size).decode())"
    tests = ProgramTests(cases=[StdinCase(stdin=text, expected=text)])
    [result] = check_program(program, tests, any_sandbox, limits=Limits(wall_s=20.0))
    assert result.passed, result


def test_every_test_where_asked_for(any_sandbox):
    program = "a, b = input(), input().split()\nprint(2 if b[1] == '1' else 0)"
    results = check_program(program, SUMS, any_sandbox, limits=LIMITS, stop_early=False)
    assert [result.verdict for result in results] == [
        Verdict.PASSED,
        Verdict.WRONG_ANSWER,
        Verdict.WRONG_ANSWER,
    ]
    assert summed_up(results, SUMS).detail == "test 2 of 3: line 1, token 1: '0', expected '3'"


def test_several_right_answers_without_a_checker_are_undecided(any_sandbox):
    """Never called wrong; but a program that fails for another reason is."""
    tests = ProgramTests(cases=SUMS.cases, matcher=UnknownMatcher(TokenMatcher()))
    undecided = check_program("print(0)", tests, any_sandbox, limits=LIMITS)
    assert [result.verdict for result in undecided] == [Verdict.UNDECIDED] * 3
    assert summed_up(undecided, tests).verdict is Verdict.UNDECIDED
    for silent in ("", "print('  ')"):
        [result] = check_program(silent, tests, any_sandbox, limits=LIMITS)
        assert result.verdict is Verdict.WRONG_ANSWER
    program = "input()\nprint(0 if input() != '1 3' else 1 / 0)"
    failed = summed_up(check_program(program, tests, any_sandbox, limits=LIMITS), tests)
    assert (failed.verdict, failed.detail) == (
        Verdict.RUNTIME_ERROR,
        "test 3 of 3: ZeroDivisionError: division by zero",
    )


def test_answers_never_enter_the_sandbox(any_sandbox):
    """What is in the sandbox's memory and files does not hold what is expected."""
    tests = ProgramTests(cases=[CallCase(args=[], expected="a most secret answer")], entry_point="f")
    program = """
def f():
    import os
    found = ''
    for fd in range(64):
        try: found += os.pread(fd, 1 << 20, 0).decode('latin-1')
        except OSError: pass
    return next((w for w in [found] if 'a most ' + 'secret answer' in w), 'not there')
"""
    [result] = check_program(program, tests, any_sandbox, limits=LIMITS)
    assert result.detail == "'not there', expected 'a most secret answer'"


def test_fingerprints_tell_tests_apart():
    case, call = StdinCase(stdin="1", expected="1"), CallCase(args=["1"], expected="1")
    all_tests = [
        ProgramTests(cases=[case]),
        ProgramTests(cases=[case, case]),
        ProgramTests(cases=[case], matcher=UnknownMatcher(TokenMatcher())),
        ProgramTests(cases=[StdinCase(stdin="1", expected="2")]),
        ProgramTests(cases=[call], entry_point="f"),
        ProgramTests(cases=[call], entry_point="g"),
    ]
    prints = [tests.fingerprint() for tests in all_tests]
    assert len(set(prints)) == len(prints)
    assert all(json.loads(text) for text in prints)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": []}, "cases: got \\[\\], expected at least one test"),
        (
            {"cases": [CallCase(args=[], expected=1)]},
            "entry_point: got '', expected the name of the function",
        ),
    ],
)
def test_useless_tests_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        ProgramTests(**arguments)
