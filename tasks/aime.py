"""AIME 2024 and 2025: 30 problems each, whose answers are whole numbers below 1000; see ``aime.md``."""

from __future__ import annotations

from treeshare.evals.task_card import TaskCard
from treeshare.tasks.mathematics import MathTask


class ContestTask(MathTask):
    """A contest's problems, asked as in lm-eval's ``aime24``; zero-shot."""

    stop = ("Question:", "</s>", "<|im_end|>", "<|eot_id|>")
    form = "Question: {problem}\nAnswer:"
    answers_are_integers = True

    def find(self, completion: str) -> str | None:
        """The stated answer; where none is, what stands between the first and the last dollar sign."""
        return super().find(completion) or _between_dollars(completion)


_MAX_CHARACTERS = 1000


def _between_dollars(text: str) -> str | None:
    first, last = text.find("$"), text.rfind("$")
    found = text[first + 1 : last].strip() if first < last else ""
    return found if 0 < len(found) <= _MAX_CHARACTERS else None


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
