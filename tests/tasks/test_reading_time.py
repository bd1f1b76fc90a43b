"""What tasks read in a model's text takes time in proportion to it, whatever the text is."""

from __future__ import annotations

from types import MappingProxyType

import pytest

from tests.growth import MAX_GROWTH, growth
from treeshare.evals.problem import Problem
from treeshare.tasks.registry import get_task

DATA = {
    "humaneval": {"entry_point": "f", "test": "", "canonical_solution": ""},
    "mbpp": {"tests": "assert f(1)", "imports": "", "setup": ""},
    "apps": {"tests": {"inputs": [""], "outputs": [""]}, "statement": ""},
    "code-contests": {"public": [], "hidden": [["", ""]], "statement": ""},
    "gsm8k": {"answer": "1", "question": ""},
}
PROMPTS = {"humaneval": 'def f(x):\n    """F."""\n'}
PUMPS = [
    *" \n\t7,{`[(\\<>#-*_=.~\"'@",
    *(
        "```\n",
        "```python\n",
        "x = 1```\n",
        "words ```python\n",
        "```\nx = 1\n```\n",
        "````\n",
        "~~~\n",
        "``` a ```\n",
    ),
    *(
        "> ",
        ">\n",
        "> ```\n",
        "- ",
        "-\n",
        "- ```\n",
        "1. a\n",
        "    a\n",
        "# a\n",
        "a\n",
        "a b c\n",
        "a\n\n",
    ),
    *(
        "<think>",
        "</think>",
        "<think></think>",
        "[THINK]",
        "<|channel|>analysis<|message|>",
        "<code>",
        "<pre>\n",
        "&amp;",
    ),
    *(
        '"""\n',
        "'''",
        "@a\n",
        "def f():\n",
        "def f(): return g\n",
        "x = (\n",
        "else:\n",
        "if 1:\n",
        ">>> a\n",
        "class A:\n",
    ),
    *(
        "import a\n",
        "f(",
        "a = b\n",
        "print(a)\n",
        "a = input()\n",
        "```py\ng = f\n```\n",
        "lambda:",
        "1+",
        "a.",
        "not ",
    ),
    *(
        "The answer is ",
        "The answer is 5. ",
        "answer",
        "Answer: ",
        "\\\\boxed{",
        "\\\\boxed{}",
        "\\\\text{",
        "1,",
        "1 234 ",
        "1.234",
        "##",
        "7 / ",
    ),
]


def reader(name):
    task = get_task(name)
    problem = Problem(task_id="p", prompt=PROMPTS.get(name, ""), data=MappingProxyType(DATA[name]))

    def read(text):
        completion = task.from_chat(problem, text)
        return (
            task.answer(problem, completion),
            task.solution(problem, completion),
            task.answer(problem, text),
        )

    return read


def slow_texts(read, pumps, **sizes):
    return {pump: times for pump in pumps if (times := growth(read, "", pump, **sizes)) >= MAX_GROWTH}


@pytest.mark.parametrize(
    ("name", "size", "negligible_s"),
    [("humaneval", 1000, 0.02), ("apps", 1000, 0.02), ("gsm8k", 4000, 0.002)],
)
def test_the_time_grows_with_the_text(name, size, negligible_s):
    assert slow_texts(reader(name), PUMPS, size=size, negligible_s=negligible_s, limit_s=5) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
def test_the_time_of_long_texts_grows_with_them(name):
    assert slow_texts(reader(name), PUMPS, size=10000, negligible_s=0.05, limit_s=60) == {}


@pytest.mark.slow
@pytest.mark.parametrize("pump", ["a b\nx=1\n", "a b\nf=1\n"])
def test_the_time_of_many_pieces_of_code_grows_with_their_number(pump):
    """Between words, so many that what is done with the whole text for each of them shows."""
    assert slow_texts(reader("humaneval"), [pump], size=60000, negligible_s=0.05, limit_s=30) == {}


def test_a_reader_that_is_quadratic_is_found():
    def read(text):
        return [text[i:].count("`") for i in range(0, len(text), 2)]

    assert "`" in slow_texts(read, ["`"], size=8000, negligible_s=0.001)
