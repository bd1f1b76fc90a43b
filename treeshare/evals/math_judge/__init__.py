"""A judge for mathematics, in bounded layers; see ``judge``."""

from treeshare.evals.helper_process import HelperLimits
from treeshare.evals.math_judge.judge import Judgement, MathJudge, exact_number

__all__ = ["HelperLimits", "Judgement", "MathJudge", "exact_number"]
