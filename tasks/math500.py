"""MATH-500: 500 competition problems, their answers in LaTeX; ``math500.md`` has the details.

Sources: Hendrycks et al., "Measuring mathematical problem solving with the MATH dataset", arXiv 2103.03874;
Lightman et al., "Let's verify step by step", arXiv 2305.20050 (the 500); Lewkowycz et al., "Solving
quantitative reasoning problems with language models", arXiv 2206.14858 (form of the prompt).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from treeshare.evals.task_card import TaskCard
from treeshare.tasks.mathematics import MathRecord, MathTask
from treeshare.tasks.reading import read_records
from treeshare.tree import Shot

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

HUB_ID = "HuggingFaceH4/MATH-500"

_CLOSE = "\nFinal Answer: The final answer is ${answer}$. I hope it is correct."
_OWN_SHOTS = (
    (
        r"For which real numbers $t$ is $\frac{\sqrt{t-3}}{\sqrt{7-t}}$ defined? Answer with an interval.",
        r"Under the first root $t-3$ must not be negative, so $t \ge 3$. Under the second one $7-t$ must not "
        r"be negative, nor zero, since it stands below the line, so $t < 7$. Together, $t$ lies in "
        r"$\boxed{[3,7)}$.",
        r"[3,7)",
    ),
    (
        r"The square matrices $\mathbf{P}$ and $\mathbf{Q}$ have two rows each. If $\det \mathbf{P} = 4$ and "
        r"$\det \mathbf{Q} = -5$, what is $\det (\mathbf{P} \mathbf{Q})$?",
        r"The determinant of a product is the product of the determinants, "
        r"$\det (\mathbf{P} \mathbf{Q}) = 4 \cdot (-5) = \boxed{-20}$.",
        r"-20",
    ),
    (
        r"Rosa carries two 6-kilogram sacks upstairs, 15 times each. If she takes two 9-kilogram sacks "
        r"instead, how many times must she carry them to move as many kilograms?",
        r"She moves $2 \cdot 6 \cdot 15 = 180$ kilograms. With the larger sacks, $m$ times, she moves "
        r"$2 \cdot 9 \cdot m = 18m$ kilograms. From $18m = 180$ follows $m = \boxed{10}$.",
        r"10",
    ),
    (
        r"The equations $5u - 3v = a$ and $9v - 15u = b$ have a solution $(u, v)$, and $b$ is not zero. Find "
        r"$\frac{a}{b}$.",
        r"The first equation times $-3$ is $9v - 15u = -3a$. Its left side is that of the second, so "
        r"$b = -3a$ and $\frac{a}{b} = \boxed{-\frac{1}{3}}$.",
        r"-\frac{1}{3}",
    ),
)
"""Problem, solution and answer; the same kinds of problems as in Lewkowycz et al., in our own wording."""


class Math500(MathTask):
    """The task; four worked examples unless the user says otherwise, none for a chat model."""

    name = "math-500"
    stop = ("Problem:",)
    num_shots = 4
    source = HUB_ID
    form = "Problem:\n{problem}\n\nSolution:"
    card = TaskCard(source=HUB_ID, size=500, licence="MIT", metric="pass@k, majority@k")

    def shots(self, data: Path | None, shot_data: Path | None) -> Sequence[Shot]:
        """Four of our own wording, then those of ``shot_data``."""
        records = [] if shot_data is None else read_records(shot_data, MathRecord)
        told = [*_OWN_SHOTS, *((record.problem, record.solution, record.gold) for record in records)]
        return [
            Shot(
                prompt=self.form.replace("{problem}", problem),
                answer=f" {solution}{_CLOSE.replace('{answer}', answer)}",
            )
            for problem, solution, answer in told
            if solution
        ]
