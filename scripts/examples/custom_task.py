"""Tasks of one's own in twenty lines each: code, mathematics, multiple choice.

treeshare sample --task scripts/examples/custom_task.py:Sums --limit 8 -n 16 --out runs/sums
treeshare evaluate runs/sums --task scripts/examples/custom_task.py:Sums
"""

from types import MappingProxyType

from treeshare.evals import CodeTask, Problem
from treeshare.evals.sandbox import OutsideTests
from treeshare.tasks.answer_task import AnswerTask


class Functions(CodeTask):
    """Code: a completion goes on with a function; asserts that it never sees test it in the sandbox."""

    name, stop, max_tokens = "functions", ("\ndef ", "\n\n"), 48
    wanted = MappingProxyType({"double": "2 * x", "square": "x * x", "negate": "-x"})

    def load(self, data):  # noqa: ANN001, ANN201, D102
        example = "def add_one(x):\n    return x + 1\n\n"
        return [Problem(task_id=name, prompt=f"{example}def {name}(x):\n") for name in self.wanted]

    def program(self, problem, completion):  # noqa: ANN001, ANN201, D102
        return problem.prompt + completion

    def tests(self, problem):  # noqa: ANN001, ANN201, D102
        name = problem.task_id
        return OutsideTests(source=f"for x in (-2, 0, 7):\n    assert {name}(x) == {self.wanted[name]}")

    def wanted_names(self, problem):  # noqa: ANN001, ANN201, D102
        return frozenset({problem.task_id})


class Sums(AnswerTask):
    """Mathematics: equivalent answers are right, and vote together: 1/2 and 0.5. Data: a sum on each line."""

    name, stop, max_tokens, judge = "sums", ("\n",), 8, "math"

    def load(self, data):  # noqa: ANN001, ANN201, D102
        sums = (
            data.read_text().splitlines() if data else [f"{a} + {b}" for a in (7, 16) for b in range(2, 60)]
        )
        examples = "2 + 3 = 5\n14 + 8 = 22\n"
        return [
            self.problem(text, f"{examples}{text} =", str(sum(map(int, text.split("+"))))) for text in sums
        ]


class Capitals(AnswerTask):
    """Multiple choice: the answer is a letter, however a completion states it."""

    name, stop, max_tokens, judge = "capitals", ("\n",), 8, "choice"
    cities = MappingProxyType({"France": "Paris", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima"})

    def load(self, data):  # noqa: ANN001, ANN201, D102
        labelled = list(zip("ABCD", self.cities.values(), strict=True))
        choices = "\n".join(f"({label}) {city}" for label, city in labelled)
        return [
            self.problem(country, f"The capital of {country} is\n{choices}\nAnswer:", label)
            for country, (label, _) in zip(self.cities, labelled, strict=True)
        ]
