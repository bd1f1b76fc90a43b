"""What a chat model's reply answers: without its reasoning, and the program in it."""

from treeshare.evals.replies.insertion import as_body, without_future_imports
from treeshare.evals.replies.program import Wanted, program_in
from treeshare.evals.replies.reasoning import final_answer, marks_reasoning, opened_reasoning
from treeshare.evals.replies.source import Source, free_names

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
