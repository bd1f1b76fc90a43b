"""Tasks whose problems have an answer and whose code is never run."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from treeshare.evals.check_result import CheckResult
from treeshare.evals.problem import Problem, Task
from treeshare.evals.replies import final_answer
from treeshare.evals.sandbox import Verdict
from treeshare.tasks.answer_judges import AnswerJudge, answer_judge
from treeshare.tasks.stated_answer import last_statement
from treeshare.tasks.stated_number import from_last_statement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from treeshare.evals.sandbox import Limits, Sandbox


class AnswerTask(Task):
    """A task that compares answers. Say how by ``judge``, and give problems by ``problem``.

    Attributes:
        judge: ``exact``, ``number``, ``math``, ``regex`` or ``choice``; see ``answer_judges``.
    """

    judge: str = "math"
    needs_sandbox = False
    stop: tuple[str, ...] = ("\n\n",)
    max_tokens = 512

    def __init__(self) -> None:
        self.answers: AnswerJudge = answer_judge(self.judge)
        if not self.chat_instruction:
            self.chat_instruction = self.answers.instruction

    def problem(self, task_id: str, prompt: str, answer: str, **data: Any) -> Problem:  # noqa: ANN401
        """A problem and its answer.

        Raises:
            DataError: If the judge can make nothing of the answer.
        """
        content = MappingProxyType({"answer": self.answers.gold(answer), **data})
        return Problem(task_id=task_id, prompt=prompt, data=content)

    def check(
        self, problem: Problem, completion: str, sandbox: Sandbox | None, limits: Limits
    ) -> CheckResult:
        """Compare the answer that a completion states; nothing is run."""
        answer = self.answers.find(completion)
        if answer is None:
            return CheckResult(verdict=Verdict.WRONG_ANSWER, detail="no answer found")
        return self.answers.check(problem.data["answer"], answer)

    def answer(self, problem: Problem, completion: str) -> str | None:
        """What a completion votes for; nothing where a pattern decides."""
        return None if self.judge == "regex" else self.answers.find(completion)

    def answer_classes(self, problem: Problem, answers: Iterable[str]) -> list[list[str]]:
        """See ``Task.answer_classes``."""
        return self.answers.classes(answers)

    def from_chat(self, problem: Problem, reply: str) -> str:
        """The reply without its reasoning, from the last place on that states an answer."""
        answer = final_answer(reply)
        if self.judge == "regex":
            return answer
        return from_last_statement(answer) if self.judge == "number" else last_statement(answer)
