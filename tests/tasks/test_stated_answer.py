"""What a reply states as its answer."""

from __future__ import annotations

import pytest

from tests.growth import MAX_GROWTH, growth
from treeshare.tasks.stated_answer import last_statement, stated_answer

ANSWERS = [
    "5",
    r"\frac{1}{2}",
    r"\{1, 2\}",
    "(3, 4]",
    r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
    "x^2 + 3.5",
    r"\$5",
]
FORMS = [
    "so $\\boxed{{{}}}$.",
    "\\boxed {{{}}} is it. Yes.",
    "\\fbox{{{}}}",
    "first \\boxed{{1}}, then\n\\[\\boxed{{{}}}\\]\nI hope it is correct.",
    "The answer is ${}$.",
    "The answer is \\({}\\).",
    "The final answer is: $${}$$",
    "**Answer:** ${}$",
    "Answer: {}\n\nThat was it.",
    "## Final Answer\n\n${}$\n",
    "#### {}",
    "Final Answer: The final answer is ${}$. I hope it is correct.",
    "The correct answer would be {}. Good.",
    "{}",
    " {}.\n",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_it_is_found(form, answer):
    assert stated_answer(form.format(answer)) == answer
    assert stated_answer(
        last_statement("Let me think.\nThe answer is 99.\n" + form.format(answer) + "\n")
    ) in (
        answer,
        "99" if form.startswith(("{", " {")) else answer,
    )


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("The answer is 4.\nWait. The answer is 5.", "4", "5"),
        ("The answer is 4.\n\nQ: more?\nA: The answer is 5.", "4", "5"),
        ("\\boxed{1} or \\boxed{2}", "2", "2"),
        ("\\boxed{1} and \\boxed{2", "1", "1"),
        ("\\boxed{\\boxed{3}}", "3", "3"),
        ("\\boxed 7", "7", "7"),
        ("The answer is 5 cm.", "5 cm", "5 cm"),
        ("The answer is $5$ cm.", "$5$ cm", "$5$ cm"),
        ("The answer is **3.5**.", "3.5", "3.5"),
        ("nothing\nhere", None, None),
        ("", None, None),
        ("\\boxed{}", None, None),
        ("the answer is", None, None),
    ],
)
def test_which_of_several(text, first, last):
    assert stated_answer(text, first=True) == first
    assert stated_answer(text) == last


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "answer: ", "#### ", "The answer is ", "\n", " ", "$", "{", "}"]
)
def test_time_grows_with_the_text(piece):
    for read in (stated_answer, last_statement, lambda text: stated_answer(text, first=True)):
        assert growth(read, "", piece, size=4000) < MAX_GROWTH
