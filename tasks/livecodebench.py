"""LiveCodeBench, code generation: contest problems with their dates; ``livecodebench.md`` has the details.

Source: Jain et al., "LiveCodeBench: holistic and contamination free evaluation of large language models for
code", arXiv 2403.07974.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from treeshare.errors import ConfigError, DataError
from treeshare.evals.matching import FunctionMatcher, Matcher, UnknownMatcher, Value, ValueMatcher
from treeshare.evals.numerals import loads
from treeshare.evals.problem import Problem, ProgramTask
from treeshare.evals.program_tests import CallCase, ProgramTests, StdinCase
from treeshare.evals.task_card import TaskCard
from treeshare.evals.values import NoValueError, encode
from treeshare.tasks.preludes import before_livecodebench
from treeshare.tasks.private_tests import IoTest, decode_tests
from treeshare.tasks.reading import hub_file, parse_record, require_unique
from treeshare.tasks.stored_records import Recent, stored_records

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from treeshare.evals.sandbox import Limits
    from treeshare.tasks.stored_records import StoredLine

HUB_ID = "livecodebench/code_generation_lite"
NUM_FILES = 6

_SEVERAL_ANSWERS = frozenset(
    {
        *("abc311_c", "abc326_d", "abc327_b", "abc333_e", "abc343_e", "abc362_c", "abc343_a", "arc185_c"),
        *("find-words-containing-character", "find-the-peaks"),
        "generate-binary-strings-without-adjacent-zeros",
        *("abc337_e", "abc355_e"),
        *("abc350_c", "arc189_a", "apply-operations-to-make-string-empty", "most-frequent-ids"),
    }
)
"""By question id or title: the reference's errata, problems with several right answers, a judge that talks to
the program, or broken tests."""

_SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and will "
    "generate a correct Python program that matches the specification and passes all tests."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your code "
    "within delimiters."
)
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly test on "
    "the sample inputs). Enclose your code within delimiters as follows. Ensure that when the python program "
    "runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
_STDIN_EXAMPLE = """### Question
A shop counts its visitors. The first line holds N, the number of days. The second line holds N integers, the
visitors of each day. Print the largest number of visitors on two days that follow each other, added together.

Sample Input:

4
3 9 2 7

Sample Output:

12

### Answer

n = int(input())
visitors = list(map(int, input().split()))
print(max(visitors[i] + visitors[i + 1] for i in range(n - 1)))

"""
_CALL_EXAMPLE = """### Question
You are given a string word of lowercase letters and an integer k. Return how many letters occur exactly k
times.

Example 1:

Input: word = "banana", k = 2
Output: 1

### Starter Code
class Solution:
    def countLetters(self, word: str, k: int) -> int:

### Answer

class Solution:
    def countLetters(self, word: str, k: int) -> int:
        return sum(word.count(letter) == k for letter in set(word))

"""
"""In our own wording: the reference's examples are statements of contest sites."""

_MEMORY_BYTES = 2 << 30
_OUTPUT_BYTES = 64 << 20


class LiveCodeBenchRecord(BaseModel):
    """One record of the data; the hub's field names. All are text, some JSON inside of it."""

    model_config = ConfigDict(extra="ignore")

    question_title: str = ""
    question_content: str
    platform: str
    question_id: str
    contest_date: datetime.datetime
    starter_code: str = ""
    difficulty: str
    public_test_cases: str
    private_test_cases: str
    metadata: str = "{}"

    @property
    def function(self) -> str:
        """The method that the tests call; empty if they give standard input.

        Raises:
            DataError: If ``metadata`` is not as expected.
        """
        try:
            found = loads(self.metadata or "{}")
        except (ValueError, RecursionError) as error:
            raise DataError(f"data: {self.question_id}, metadata: not JSON: {error}") from error
        name = found.get("func_name", "") if isinstance(found, dict) else None
        if not isinstance(name, str) or not (name.isidentifier() or not name):
            raise DataError(f"data: {self.question_id}, metadata: func_name is not the name of a function")
        return name

    @property
    def prompt(self) -> str:
        """The form for models that were not taught to chat: a worked example of the same kind in front."""
        starter = f"### Starter Code\n{self.starter_code}\n\n" if self.starter_code else ""
        example = _CALL_EXAMPLE if self.starter_code else _STDIN_EXAMPLE
        return f"{example}### Question\n{self.question_content}\n\n{starter}### Answer\n\n"

    @property
    def chat_prompt(self) -> str:
        """The generic form for chat models."""
        form = _WITH_STARTER if self.starter_code else _WITHOUT_STARTER
        code = self.starter_code or "# YOUR CODE HERE"
        return (
            f"### Question:\n{self.question_content}\n\n### Format: {form}\n```python\n{code}\n```\n\n"
            "### Answer: (use the provided format with backticks)\n\n"
        )

    def tests(self) -> list[IoTest]:
        """All tests, the public ones first.

        Raises:
            DataError: If they cannot be read, or there is none, or they are of two kinds.
        """
        where = f"data: {self.question_id}"
        public = decode_tests(self.public_test_cases, f"{where}, public_test_cases")
        tests = public + decode_tests(self.private_test_cases, f"{where}, private_test_cases")
        if not tests:
            raise DataError(f"{where}: no test, so any program would be right")
        if any(test.is_call != bool(self.function) for test in tests):
            raise DataError(f"{where}: its tests are not of the kind that metadata says, or of two kinds")
        return tests

    def program_tests(self) -> ProgramTests:
        """The tests, ready to be run.

        Raises:
            DataError: As ``tests``; or if one gives a function what is no JSON value.
        """
        several = bool({self.question_id, self.question_title} & _SEVERAL_ANSWERS)
        matcher: Matcher = ValueMatcher(bools_are_numbers=True) if self.function else _LINES
        tests = self.tests()
        return ProgramTests(
            cases=[
                _case(test, f"data: {self.question_id}, test {i}") for i, test in enumerate(tests, start=1)
            ],
            matcher=UnknownMatcher(matcher) if several else matcher,
            entry_point=f"Solution.{self.function}" if self.function else "",
        )


class LiveCodeBench(ProgramTask):
    """The task; its options choose problems.

    Args:
        version: Which of the hub's files: ``release_v1`` to ``release_v6``, ``v5``, ``v4_v5``.
        start_date: The first day of contests, ``2024-08-01``.
        end_date: The last one.
        difficulty: ``easy``, ``medium``, ``hard``, or several with commas.
        platform: ``atcoder``, ``leetcode``, ``codeforces``, or several with commas.

    Raises:
        ConfigError: If one is none of these.
    """

    name = "livecodebench"
    stop = ("###",)
    max_tokens = 2000
    timeout_s = 6.0
    chat_instruction = ""
    chat_system = _SYSTEM
    options = MappingProxyType(
        {
            "version": "files of the hub: release_v1 to release_v6 (the default), or v5, v4_v5",
            "start_date": "first day of contests, 2024-08-01",
            "end_date": "last day of contests",
            "difficulty": "easy, medium, hard; several with commas",
            "platform": "atcoder, leetcode, codeforces; several with commas",
        }
    )
    card = TaskCard(source=HUB_ID, size=1055, licence="cc, without a version", metric="pass@k")

    def __init__(
        self,
        *,
        version: str = "",
        start_date: str = "",
        end_date: str = "",
        difficulty: str = "",
        platform: str = "",
    ) -> None:
        self._version, self._files = version, _files_of(version or f"release_v{NUM_FILES}")
        self._dates = _day("start_date", start_date), _day("end_date", end_date)
        self._difficulties = _choices("difficulty", difficulty, ("easy", "medium", "hard"))
        self._platforms = _choices("platform", platform, ("atcoder", "leetcode", "codeforces"))
        self._tests = Recent(lambda line: parse_record(line, LiveCodeBenchRecord, "data").program_tests())

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``; each problem's tests are read once, and again when they are run."""
        if data is not None and self._version:
            raise ConfigError("--task-option version: it selects files of the hub; leave it out with --data")
        problems = []
        for stored, record in self._records(data):
            if not self._is_chosen(record):
                continue
            record.program_tests()
            content = {"tests": stored, "function": record.function, "starter": record.starter_code}
            problems.append(
                Problem(
                    task_id=record.question_id,
                    prompt=record.prompt,
                    data=MappingProxyType(content),
                    chat_prompt=record.chat_prompt,
                )
            )
        if not problems:
            raise DataError(f"data: {data or HUB_ID} contains no problem that fits the options")
        return require_unique(problems, data or HUB_ID)

    def program(self, problem: Problem, completion: str) -> str:
        """The completion, with the grader's imports."""
        return before_livecodebench(completion.strip())

    def entry_point(self, problem: Problem) -> str:
        """See ``ProgramTask.entry_point``."""
        function = problem.data["function"]
        return f"Solution.{function}" if function else ""

    def tests(self, problem: Problem) -> ProgramTests:
        """All tests, public and private."""
        return self._tests.get(problem.data["tests"])

    def limits(self, problem: Problem, limits: Limits) -> Limits:
        """See ``ProgramTask.limits``: contests allow more memory and output than is usual here."""
        return replace(
            limits,
            memory_bytes=max(limits.memory_bytes, _MEMORY_BYTES),
            output_bytes=max(limits.output_bytes, _OUTPUT_BYTES),
        )

    def _records(self, data: Path | None) -> Iterator[tuple[StoredLine, LiveCodeBenchRecord]]:
        for path in [data] if data is not None else [hub_file(HUB_ID, name) for name in self._files]:
            yield from stored_records(path, LiveCodeBenchRecord)

    def _is_chosen(self, record: LiveCodeBenchRecord) -> bool:
        day = record.contest_date.date()
        start, end = self._dates
        return (
            (start is None or start <= day)
            and (end is None or day <= end)
            and (not self._difficulties or record.difficulty in self._difficulties)
            and (not self._platforms or record.platform in self._platforms)
        )


def lines_difference(got: Value, expected: Value, given: Value) -> str | None:
    """The reference's comparison of printed text: None if it is right, else one line on what differs.

    As many lines, without spaces around them; a line is right if it is equal, or if all words of both are
    decimal numbers that are equal.
    """
    lines, right = ([line.strip() for line in text.strip().split("\n")] for text in (got, expected))
    if len(lines) != len(right):
        return f"{len(lines)} lines, expected {len(right)}"
    for number, (line, wanted) in enumerate(zip(lines, right, strict=True), start=1):
        if line != wanted:
            numbers = _decimals(line)
            if numbers is None or numbers != _decimals(wanted):
                return f"line {number}: {line[:40]!r}, expected {wanted[:40]!r}"
    return None


_LINES = FunctionMatcher(name="livecodebench/lines/v1", function=lines_difference)


def _decimals(line: str) -> list[Decimal] | None:
    try:
        return [Decimal(word) for word in line.split()]
    except (InvalidOperation, ValueError):
        return None


def _case(test: IoTest, where: str) -> StdinCase | CallCase:
    if not test.is_call:
        return StdinCase(stdin=test.given, expected=test.expected)
    lines = test.given.strip("\n").split("\n") if test.given.strip() else []
    arguments = [_json(line, f"{where}, input") for line in lines]
    case = CallCase(args=arguments, expected=_json(test.expected, f"{where}, output"))
    try:
        encode([case.args, case.expected])
    except NoValueError as error:
        raise DataError(f"{where}: holds {error}") from error
    return case


def _json(text: str, where: str) -> Any:  # noqa: ANN401
    try:
        return loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {' '.join(str(error).split())[:120]}") from error


def _files_of(version: str) -> list[str]:
    found = re.fullmatch(r"release_v([1-6])|v([1-6])(?:_v([1-6]))?", version)
    first, last = 1, 0
    if found is not None:
        first = int(found[2] or 1)
        last = int(found[1] or found[3] or found[2])
    if last < first:
        raise ConfigError.of(
            "--task-option version", got=version, expected="release_v1 to release_v6, v5, v4_v5"
        )
    return [f"test{number if number > 1 else ''}.jsonl" for number in range(first, last + 1)]


def _day(name: str, text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text) if text else None
    except ValueError:
        raise ConfigError.of(f"--task-option {name}", got=text, expected="a day like 2024-08-01") from None


def _choices(name: str, text: str, known: tuple[str, ...]) -> frozenset[str]:
    chosen = [part.strip() for part in text.split(",")] if text else []
    for part in chosen:
        if part not in known:
            expected = f"{', '.join(known)}, or several with commas"
            raise ConfigError.of(f"--task-option {name}", got=part, expected=expected)
    return frozenset(chosen)
