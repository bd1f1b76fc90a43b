"""Problems, checking in a sandbox, and pass@k."""

from treeshare.evals.check_result import CheckResult
from treeshare.evals.evaluate import CheckedCompletion, Evaluation, evaluate_completions
from treeshare.evals.problem import CodeTask, Problem, ProgramTask, Task
from treeshare.evals.prompts import (
    PromptOptions,
    build_prompts,
    completion_end,
    cost_table,
    encode_prompts,
    shot_costs,
)
from treeshare.evals.statistics.pass_at_k import Estimate, pass_at_each_k, pass_at_k
from treeshare.evals.verdict_cache import VerdictCache

__all__ = [
    "CheckResult",
    "CheckedCompletion",
    "CodeTask",
    "Estimate",
    "Evaluation",
    "Problem",
    "ProgramTask",
    "PromptOptions",
    "Task",
    "VerdictCache",
    "build_prompts",
    "completion_end",
    "cost_table",
    "encode_prompts",
    "evaluate_completions",
    "pass_at_each_k",
    "pass_at_k",
    "shot_costs",
]
