"""When a problem has enough completions: the others are cancelled, and the journal says why.

A rule sees a problem's completions by ascending index, not in the order in which they finish. So a resumed
run ends each problem with the same completion as an uninterrupted run. Completions that had finished out of
order when a run was killed are not in the journal, and are generated again.

The completions that remain are a biased sample: a problem ended by its first success looks better than it is.
Use this to get answers, not to measure pass@k.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from treeshare.errors import ConfigError
from treeshare.evals.problem import Task
from treeshare.evals.sandbox import Limits, default_sandbox
from treeshare.evals.votes import answer_classes, representatives

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from treeshare.evals.problem import Problem


class EndRule:
    """Sees a run's completions, a problem's by ascending index, and says when it needs no more.

    This one never says so.
    """

    never_ends = True

    def note(self, task_id: str, completion: str) -> None:
        """Take in a completion of an earlier session."""

    def reason(self, task_id: str, completion: str) -> str | None:
        """Take in a completion; the reason why its problem is to end, or None."""
        self.note(task_id, completion)
        return None

    @staticmethod
    def parse(option: str, text: str | None, task: Task, problems: Sequence[Problem]) -> EndRule:
        """The rule that an option's text names.

        Raises:
            ConfigError: If it names none, or the task has no answers to count.
            SandboxUnavailableError: If programs are to be checked and there is no sandbox.
        """
        by_id = {problem.task_id: problem for problem in problems}
        if text is None:
            return EndRule()
        if text == "first-success":
            return FirstSuccess(task, by_id)
        found = re.fullmatch(r"margin=([1-9][0-9]{0,5})", text)
        if found is None:
            raise ConfigError.of(option, got=text, expected="first-success, or margin=N")
        if type(task).answer is Task.answer:
            raise ConfigError(f"{option}: {task.name} has no answers to count; use first-success")
        return AnswerMargin(
            lambda task_id, text: task.answer(by_id[task_id], text),
            int(found[1]),
            lambda task_id, answers: task.answer_classes(by_id[task_id], answers),
        )


class FirstSuccess(EndRule):
    """Ends a problem with the first completion that passes its check; the engine waits meanwhile.

    Args:
        task: Checks.
        problems: By task id.
    """

    never_ends = False

    def __init__(self, task: Task, problems: Mapping[str, Problem]) -> None:
        self._task, self._problems = task, problems
        self._sandbox = default_sandbox() if task.needs_sandbox else None
        self._limits = Limits(wall_s=task.timeout_s)

    def reason(self, task_id: str, completion: str) -> str | None:
        """See ``EndRule.reason``."""
        result = self._task.check(self._problems[task_id], completion, self._sandbox, self._limits)
        return "first success" if result.passed else None


class AnswerMargin(EndRule):
    """Ends a problem when one answer is ahead of every other by so many completions.

    Where all agree a problem ends after ``margin`` completions; where they disagree it gets more. The early
    stopping of BatchPrompt (SEAS; Lin et al., arXiv 2309.00384) ends an item likewise once its answer is
    confident.

    Args:
        answer: The answer of a problem's completion, by task id and text; None casts no vote.
        margin: Completions ahead.
        classes: Classes of equivalent answers, by task id and answers; each alone by default.
    """

    never_ends = False

    def __init__(
        self,
        answer: Callable[[str, str], str | None],
        margin: int,
        classes: Callable[[str, Iterable[str]], list[list[str]]] = lambda _, answers: answer_classes(answers),
    ) -> None:
        self._answer, self._margin, self._classes = answer, margin, classes
        self._given: defaultdict[str, list[str]] = defaultdict(list)

    def note(self, task_id: str, completion: str) -> None:
        """See ``EndRule.note``."""
        answer = self._answer(task_id, completion)
        if answer is not None:
            self._given[task_id].append(answer)

    def reason(self, task_id: str, completion: str) -> str | None:
        """See ``EndRule.reason``."""
        self.note(task_id, completion)
        given = self._given[task_id]
        votes = Counter(representatives(given, self._classes(task_id, given)))
        top = [*votes.most_common(2), ("", 0), ("", 0)]
        ahead = top[0][1] - top[1][1]
        return f"answer {top[0][0]} is ahead by {ahead}" if ahead >= self._margin else None
