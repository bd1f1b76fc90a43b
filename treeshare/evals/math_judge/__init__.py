"""A judge for mathematics, in bounded layers; see ``judge``."""

from treeshare.evals.math_judge.judge import Judgement, MathJudge
from treeshare.evals.math_judge.symbols import SymbolLimits

__all__ = ["Judgement", "MathJudge", "SymbolLimits"]
