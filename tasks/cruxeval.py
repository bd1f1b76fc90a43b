"""CRUXEval-O: what does this function return? Judged without running anything; see ``cruxeval.md``.

Source: Gu et al., "CRUXEval: a benchmark for code reasoning, understanding and execution", arXiv 2401.03065.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import BaseModel

from treeshare.errors import DataError
from treeshare.evals.literals import NoLiteralError, canonical, literal
from treeshare.evals.problem import CheckResult, Problem, Task
from treeshare.evals.replies import final_answer
from treeshare.evals.sandbox import Verdict
from treeshare.evals.task_card import TaskCard
from treeshare.tasks.reading import read_hub, read_records, require_unique

if TYPE_CHECKING:
    from pathlib import Path

    from treeshare.evals.sandbox import Limits, Sandbox

HUB_ID = "cruxeval-org/cruxeval"

_BEGIN, _END = "[ANSWER]", "[/ANSWER]"

_ASK = (
    "You are given a Python function and an assertion containing an input to the function. Complete the "
    "assertion with a literal (no unsimplified expressions, no function calls) containing the output when "
    "executing the provided code on the given input, even if the function is incorrect or incomplete. Do NOT "
    "output any extra information. "
)
_DIRECT = f"""{_ASK}Provide the full assertion with the correct output in [ANSWER] and [/ANSWER] tags, \
following the examples.

[PYTHON]
def f(n):
    return n
assert f(17) == ??
[/PYTHON]
[ANSWER]
assert f(17) == 17
[/ANSWER]

[PYTHON]
def f(s):
    return s + "a"
assert f("x9j") == ??
[/PYTHON]
[ANSWER]
assert f("x9j") == "x9ja"
[/ANSWER]

"""
_STEPS = f"""{_ASK}Execute the program step by step before arriving at an answer, and provide the full \
assertion with the correct output in [ANSWER] and [/ANSWER] tags, following the examples.

[PYTHON]
def f(s):
    s = s + s
    return "b" + s + "a"
assert f("hi") == ??
[/PYTHON]
[THOUGHT]
Let's execute the code step by step:

1. The function f is defined, which takes a single argument s.
2. The function is called with the argument "hi", so within the function, s is initially "hi".
3. Inside the function, s is concatenated with itself, so s becomes "hihi".
4. The function then returns a new string that starts with "b", followed by the value of s (which is now \
"hihi"), and ends with "a".
5. The return value of the function is therefore "bhihia".
[/THOUGHT]
[ANSWER]
assert f("hi") == "bhihia"
[/ANSWER]

"""
"""The reference's own two prompts (MIT), which models were measured with."""


class CruxEvalRecord(BaseModel):
    """One record of the data; the hub's field names. ``input`` is source text, not always a literal."""

    id: str
    code: str
    input: str
    output: str


class CruxEvalOutput(Task):
    """The task, answered directly."""

    name = "cruxeval-output"
    stop = (_END,)
    max_tokens = 512
    needs_sandbox = False
    card = TaskCard(source=HUB_ID, size=800, licence="MIT", metric="pass@k")
    front = _DIRECT
    begins = _BEGIN

    def load(self, data: Path | None) -> list[Problem]:
        """See ``Task.load``."""
        problems = []
        for record in _records(data):
            try:
                literal(record.output)
            except NoLiteralError as error:
                raise DataError(f"data: {data or HUB_ID}, {record.id}, output: {error}") from error
            asked = f"[PYTHON]\n{record.code}\nassert f({record.input}) == ??\n[/PYTHON]\n{self.begins}\n"
            content = MappingProxyType({"input": record.input, "output": record.output})
            problems.append(Problem(task_id=record.id, prompt=self.front + asked, data=content))
        return require_unique(problems, data or HUB_ID)

    def from_chat(self, problem: Problem, reply: str) -> str:
        """The reply without its reasoning, what stands between the last tags of an answer."""
        answer = final_answer(reply)
        return answer.rpartition(_BEGIN)[2].partition(_END)[0] if _BEGIN in answer else answer

    def answer(self, problem: Problem, completion: str) -> str | None:
        """The literal that a completion gives, in one form for equal ones."""
        text = prediction(completion)
        try:
            return canonical(literal(text)) if text is not None else None
        except ValueError:
            return None

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Compare two literals; nothing is run."""
        detail = difference(prediction(completion), problem.data["input"], problem.data["output"])
        verdict = Verdict.PASSED if detail is None else Verdict.WRONG_ANSWER
        return CheckResult(verdict=verdict, detail=detail or "")


class CruxEvalOutputCot(CruxEvalOutput):
    """The task, answered after thinking step by step."""

    name = "cruxeval-output-cot"
    max_tokens = 1024
    front = _STEPS
    begins = "[THOUGHT]"


def prediction(completion: str) -> str | None:
    """What a completion says that the function returns, as source; None if it says nothing.

    After the first ``[ANSWER]`` where there is one, what stands between the first ``==`` and the next.
    """
    answer = completion.partition(_BEGIN)[2] if _BEGIN in completion else completion
    parts = answer.partition(_END)[0].split("==", 2)
    text = (parts[1] if len(parts) > 1 else parts[0]).strip()
    return text or None


def difference(predicted: str | None, given: str, output: str) -> str | None:
    """None if a prediction is right, else one line on why not; ``given`` is the input of the call."""
    if predicted is None:
        return "no answer found"
    if f"f({given})" in predicted:
        return "the answer repeats the call"
    try:
        value = literal(predicted)
    except NoLiteralError as error:
        return str(error)
    return None if value == literal(output) else f"answered {predicted[:60]}, expected {output[:60]}"


def _records(data: Path | None) -> list[CruxEvalRecord]:
    if data is None:
        return read_hub(HUB_ID, CruxEvalRecord, splits=["test"])
    return read_records(data, CruxEvalRecord)
