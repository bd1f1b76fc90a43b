"""Expressions compared by sympy in a helper process."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from treeshare.evals.helper_process import HelperError, HelperLimits, HelperMissingError, HelperProcess
from treeshare.evals.math_judge.compare import Outcome
from treeshare.installation import how_to_add

if TYPE_CHECKING:
    from treeshare.evals.math_judge.arithmetic import Node


def missing() -> str:
    """Why nothing is looked at where the libraries are missing."""
    return f"not looked at: sympy and math-verify are not installed; {how_to_add('math')}"


class SympySymbols:
    """Compares expressions by sympy; see ``compare.Symbols``. Safe to use from several threads.

    Whatever an expression is, a comparison ends: by an answer, or by a limit, which counts as not equal.
    """

    def __init__(self, limits: HelperLimits | None = None) -> None:
        self.helper = HelperProcess(Path(__file__).with_name("child.py"), limits)

    def compare(self, first: Node, second: Node, *, up_to_factor: bool = False) -> Outcome:
        """See ``compare.Symbols``."""
        request = {"first": _plain(first), "second": _plain(second), "up_to_factor": up_to_factor}
        try:
            answer = self.helper.ask(request)
        except HelperMissingError:
            return Outcome(right=None, layer="symbols", reason=missing())
        except HelperError as error:
            return Outcome(right=False, layer="symbols", reason=str(error), gave_up=True)
        if answer["right"] is None:
            return Outcome(right=None, layer="symbols", reason=missing())
        return Outcome(right=bool(answer["right"]), layer="symbols", reason=str(answer["reason"]))


def _plain(node: Node) -> Any:  # noqa: ANN401
    """A node as JSON: numbers are hexadecimal, of any length."""
    if isinstance(node, Fraction):
        return ["number", hex(node.numerator), hex(node.denominator)]
    if isinstance(node, str):
        return node
    if node[0] in ("call", "latex", "based"):
        return [node[0], node[1], *map(_plain, node[2:])]
    return [node[0], *map(_plain, node[1:])]
