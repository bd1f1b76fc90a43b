"""AIME 2024 and 2025: 30 problems each, whose answers are whole numbers below 1000; see ``aime.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from treeshare.evals.task_card import TaskCard
from treeshare.tasks.boxed_answer import between_dollars, first_answer
from treeshare.tasks.mathematics import MathTask

if TYPE_CHECKING:
    from treeshare.evals.problem import Problem


class ContestTask(MathTask):
    """A contest's problems, asked as in lm-eval's ``aime24``; zero-shot."""

    stop = ("Question:", "</s>", "<|im_end|>", "<|eot_id|>")
    form = "Question: {problem}\nAnswer:"
    answers_are_integers = True

    def answer(self, problem: Problem, completion: str) -> str | None:
        """The stated answer; where none is, what stands between dollar signs, or all of the completion."""
        return first_answer(completion) or between_dollars(completion)


class Aime2024(ContestTask):
    """AIME I and II of 2024."""

    name = "aime-2024"
    source = "HuggingFaceH4/aime_2024"
    split = "train"
    card = TaskCard(source=source, size=30, licence="MIT; problems MAA's", metric="pass@k, majority@k")


class Aime2025(ContestTask):
    """AIME I and II of 2025."""

    name = "aime-2025"
    source = "math-ai/aime25"
    card = TaskCard(source=source, size=30, licence="Apache-2.0; problems MAA's", metric="pass@k, majority@k")
