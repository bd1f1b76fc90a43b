"""Running a program on a problem's tests: one sandboxed process each; the right answers stay outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from treeshare.errors import ConfigError
from treeshare.evals.check_result import CheckResult
from treeshare.evals.json_values import NoJsonValueError, as_json
from treeshare.evals.matching import Matcher, TokenMatcher, ValueMatcher
from treeshare.evals.numerals import dumps
from treeshare.evals.sandbox import Call, Verdict
from treeshare.evals.values import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from treeshare.evals.sandbox import Execution, Limits, Sandbox


@dataclass(frozen=True, kw_only=True)
class StdinCase:
    """What a program reads, and what it should print.

    Attributes:
        stdin: Its whole input.
        expected: What the matcher takes: text, for most.
    """

    stdin: str
    expected: Any


@dataclass(frozen=True, kw_only=True)
class CallCase:
    """What a function is given, and what it should return; JSON values.

    Attributes:
        args: The arguments.
        expected: What the matcher takes: a JSON value, for most.
    """

    args: list[Any]
    expected: Any


@dataclass(frozen=True, kw_only=True)
class ProgramTests:
    """A problem's tests.

    Attributes:
        cases: At least one.
        matcher: What a right answer is; ``TokenMatcher`` or ``ValueMatcher`` by default.
        entry_point: For calls: ``"f"``, or ``"Solution.f"`` for a method.
    """

    cases: Sequence[StdinCase | CallCase]
    matcher: Matcher | None = None
    entry_point: str = ""

    def __post_init__(self) -> None:
        if not self.cases:
            raise ConfigError.of("cases", got=self.cases, expected="at least one test")
        if not self.entry_point and any(isinstance(case, CallCase) for case in self.cases):
            raise ConfigError.of("entry_point", got="", expected="the name of the function to call")

    def matcher_for(self, case: StdinCase | CallCase) -> Matcher:
        """The matcher, or the default one for that kind of test."""
        return self.matcher or (TokenMatcher() if isinstance(case, StdinCase) else ValueMatcher())

    def fingerprint(self) -> str:
        """All that a verdict depends on besides the program and its limits, as text."""
        cases = [
            [case.stdin if isinstance(case, StdinCase) else [case.args], case.expected] for case in self.cases
        ]
        keys = [self.matcher_for(case).key for case in self.cases]
        return dumps([self.entry_point, cases, sorted(set(keys))], sort_keys=True)


def check_program(
    program: str, tests: ProgramTests, sandbox: Sandbox, *, limits: Limits, stop_early: bool = True
) -> list[CheckResult]:
    """Run ``program`` on its tests, in their order.

    A program that reads stdin may leave early with exit status 0: then what it printed counts.

    Args:
        program: A program that reads stdin, or a module that defines ``tests.entry_point``.
        tests: What to run it on.
        sandbox: Where it runs, a fresh process for each test.
        limits: For each test.
        stop_early: Whether to end after the first test that it fails for certain.

    Returns:
        A result for each test that was run.

    Raises:
        SandboxError: If the sandbox broke.
    """
    results = []
    for case in tests.cases:
        if isinstance(case, StdinCase):
            execution = sandbox.run(program, stdin=case.stdin.encode("utf-8", "surrogatepass"), limits=limits)
        else:
            call = Call(entry_point=tests.entry_point, args=case.args)
            execution = sandbox.run(program, call=call, limits=limits)
        results.append(_result(case, execution, tests.matcher_for(case)))
        if stop_early and results[-1].verdict not in (Verdict.PASSED, Verdict.UNDECIDED):
            break
    return results


def summed_up(results: Sequence[CheckResult], tests: ProgramTests) -> CheckResult:
    """The verdict on a program: passed, or its first failure, an undecided test only if no other one failed.

    The detail says which test it was.
    """
    failures = [(number, result) for number, result in enumerate(results, start=1) if not result.passed]
    decided = [pair for pair in failures if pair[1].verdict is not Verdict.UNDECIDED] or failures
    if not decided:
        return CheckResult(verdict=Verdict.PASSED, detail="")
    number, failure = decided[0]
    return CheckResult(
        verdict=failure.verdict, detail=f"test {number} of {len(tests.cases)}: {failure.detail}"
    )


def _result(case: StdinCase | CallCase, execution: Execution, matcher: Matcher) -> CheckResult:
    """The verdict on one test."""
    left = isinstance(case, StdinCase) and execution.exit_code == 0
    if execution.verdict is not Verdict.PASSED and not (left and execution.verdict is Verdict.RUNTIME_ERROR):
        # An assertion of the program's own is no answer.
        is_assertion = execution.verdict is Verdict.WRONG_ANSWER
        verdict = Verdict.RUNTIME_ERROR if is_assertion else execution.verdict
        return CheckResult(verdict=verdict, detail=execution.detail)
    if isinstance(case, StdinCase):
        output = execution.stdout.decode("utf-8", "replace")
        difference = matcher.difference(output, case.expected, case.stdin)
        if difference is not None and not output.strip():  # whatever else is right
            return CheckResult(verdict=Verdict.WRONG_ANSWER, detail=difference)
    elif execution.value is None:
        difference = execution.detail
    else:
        try:
            value = as_json(decode(execution.value))
        except NoJsonValueError as error:
            difference = f"returned {error}, which is no JSON value"
        except ValueError as error:
            detail = f"returned a value that {error}"
            return CheckResult(verdict=Verdict.WRONG_ANSWER, detail=detail)
        else:
            difference = matcher.difference(value, case.expected, case.args)
    if difference is None:
        return CheckResult(verdict=Verdict.PASSED, detail="")
    if matcher.decides:
        return CheckResult(verdict=Verdict.WRONG_ANSWER, detail=difference)
    return CheckResult(
        verdict=Verdict.UNDECIDED, detail=f"not the known answer, but others are right too: {difference}"
    )
