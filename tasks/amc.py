"""AMC 2023: 40 problems of AMC 12A and 12B whose answers are whole numbers; see ``amc.md``."""

from __future__ import annotations

from treeshare.evals.task_card import TaskCard
from treeshare.tasks.aime import ContestTask


class Amc2023(ContestTask):
    """AMC 12A and 12B of 2023."""

    name = "amc-2023"
    source = "math-ai/amc23"
    card = TaskCard(source=source, size=40, licence="MIT; problems MAA's", metric="pass@k, majority@k")
