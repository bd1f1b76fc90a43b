"""What a chat model's reply answers: without its reasoning, and the program in it."""

from treeshare.evals.replies.program import Wanted, program_in
from treeshare.evals.replies.reasoning import final_answer, marks_reasoning, opened_reasoning
from treeshare.evals.replies.source import Source, as_body, free_names, without_future_imports

__all__ = [
    "Source",
    "Wanted",
    "as_body",
    "final_answer",
    "free_names",
    "marks_reasoning",
    "opened_reasoning",
    "program_in",
    "without_future_imports",
]
