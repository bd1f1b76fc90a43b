"""Problems, checking in a sandbox, and pass@k."""

from treeshare.evals.evaluate import CheckedCompletion, Evaluation, evaluate_completions
from treeshare.evals.pass_at_k import Estimate, pass_at_each_k, pass_at_k
from treeshare.evals.problem import CheckResult, CodeTask, Problem, Task

__all__ = [
    "CheckResult",
    "CheckedCompletion",
    "CodeTask",
    "Estimate",
    "Evaluation",
    "Problem",
    "Task",
    "evaluate_completions",
    "pass_at_each_k",
    "pass_at_k",
]
