"""A task of one's own in twenty lines: sums; ``--data`` may name a file with one on each line.

treeshare sample --task scripts/examples/custom_task.py:Sums --limit 8 -n 16 --out runs/sums
treeshare evaluate runs/sums --task scripts/examples/custom_task.py:Sums
"""

from treeshare.evals import CheckResult, Problem, Task
from treeshare.evals.sandbox import Verdict

EXAMPLES = "2 + 3 = 5\n14 + 8 = 22\n"


class Sums(Task):
    """Right is the number; the answers also vote, so ``evaluate`` prints majority@k beside pass@k."""

    name, stop, max_tokens, needs_sandbox = "sums", ("\n",), 8, False

    def load(self, data):  # noqa: ANN001, ANN201, D102
        sums = (
            data.read_text().splitlines() if data else [f"{a} + {b}" for a in (7, 16) for b in range(2, 60)]
        )
        return [Problem(task_id=text, prompt=f"{EXAMPLES}{text} =") for text in sums]

    def check(self, problem, completion, sandbox, limits):  # noqa: ANN001, ANN201, D102
        right = str(sum(map(int, problem.task_id.split("+"))))
        is_right = self.answer(problem, completion) == right
        verdict = Verdict.PASSED if is_right else Verdict.WRONG_ANSWER
        return CheckResult(verdict=verdict, detail="" if is_right else f"not {right}")

    def answer(self, problem, completion):  # noqa: ANN001, ANN201, D102
        return completion.strip() or None
