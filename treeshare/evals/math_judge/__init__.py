"""A judge for mathematics, in bounded layers; see ``judge``."""

from treeshare.evals.helper_process import HelperLimits
from treeshare.evals.math_judge.judge import Judgement, MathJudge

__all__ = ["HelperLimits", "Judgement", "MathJudge"]
