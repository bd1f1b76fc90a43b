"""Reference solutions in replies of many shapes are found again, whole: real programs, not ours.

A few of each set by default; all of them in a slow test.
"""

from __future__ import annotations

import ast

import pytest

from treeshare.tasks.registry import get_task


def quoted(text, mark):
    return "".join(f"{mark}{line}\n" if line else f"{mark.rstrip()}\n" for line in text.split("\n"))


DRAFT = "<think>\n```python\nx = 1\nprint(input())\n```\nNo.\n</think>\n"
SHAPES = {
    "fence": "Sure.\n```python\n{code}```\nDone.\n",
    "draft": DRAFT + "The code:\n\n~~~~\n{code}~~~~\n\nIt prints\n```\n1\n```\n",
    "list": "1. This:\n\n{listed}\nDone.\n",
    "quote": "You said:\n{quoted}\nDone.\n",
    "cut off": "```py\n{code}",
    "bare": "{code}",
    "words": "Here is the code:\n\n{code}\nThis works because it's right, doesn't it?",
}


def program(text):
    """A program without what does nothing: comments, strings alone."""
    tree = ast.parse(text.lstrip("\n"))
    tree.body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    ]
    return ast.dump(tree)


def lost(name, data, solutions_of, step):
    """Shapes in which a solution is not found again."""
    task = get_task(name)
    found = []
    problems = task.load(data)[::step]
    assert problems
    for problem in problems:
        for solution in solutions_of(problem):
            code = solution.replace("\r\n", "\n").replace("\r", "\n").rstrip() + "\n"
            block = f"```python\n{code}```"
            for shape, form in SHAPES.items():
                reply = form.format(code=code, listed=quoted(block, "   "), quoted=quoted(block, "> "))
                if program(task.from_chat(problem, reply)) != program(code):
                    found.append((problem.task_id, shape))
    return found


def references(name, shared):
    if name == "humaneval":
        return None, lambda problem: [problem.prompt + problem.data["canonical_solution"]]
    if name == "code-contests":
        path = shared("code_contests/codecontests_python_checked.jsonl")
        return path, lambda problem: problem.data["solutions"]
    path = shared("mbpp/mbpp.jsonl" if name == "mbpp" else "mbpp/sanitized-mbpp.json")
    return path, lambda problem: [problem.data["solution"]]


pytestmark = pytest.mark.filterwarnings("ignore")  # of escapes in the programs

NAMES = ["humaneval", "mbpp", "mbpp-sanitized", "code-contests"]


@pytest.mark.parametrize("name", NAMES)
def test_a_few_solutions_are_found_again(name, shared):
    data, solutions_of = references(name, shared)
    assert lost(name, data, solutions_of, 41) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_all_solutions_are_found_again(name, shared):
    data, solutions_of = references(name, shared)
    assert lost(name, data, solutions_of, 1) == []
