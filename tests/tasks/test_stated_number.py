"""Which number a text states."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.tasks.stated_number import first_number, from_last_statement

STATEMENTS = [
    "The answer is {}",
    "the answer is: {}.",
    "So the final answer is {}.",
    "THE ANSWER IS {}",
    "Answer: {}",
    "**Answer:** {}",
    "**Answer**: {}",
    "Final Answer: {}",
    "## Answer\n\n{}",
    "#### {}",
    "####{}",
    "\\boxed{{{}}}",
    "$\\boxed{{{}}}$.",
    "\\fbox{{{}}}",
    "The answer is \\boxed{{{}}}.",
    "The answer is **{}**.",
    "The answer is $\\textbf{{{}}}$",
    "The answer is \\[\n{}\n\\]",
    "The answer is about {}",
    "The answer is x = {}",
    "\\boxed{{x = {}}}",
    "\\boxed{{2 \\cdot 3 = {}}}",
    'The correct answer is "{}"',
    "The answer to the question is {} apples",
    "The answer would be {}",
    "My answer is \u201c{}\u201d",
    "The answer is <b>{}</b>",
]
SPACES = " \u00a0\u2009\u2007\u202f\u2002\u200a"
SEPARATORS = [
    ",",
    "{,}",
    "{,\\!}",
    ",\\!",
    "\\,",
    "\\ ",
    "\\;",
    "_",
    "'",
    "\u2019",
    "~",
    "&nbsp;",
    "\uff0c",
    *SPACES,
]
CURRENCIES = ["$", "\\$", "\u20ac", "\u00a3", "\u20b9", "US$", "EUR ", "Rs. "]
UNITS = ["", " dollars", " \u20ac", "%", "\\%", " kg", "\\text{ cm}", " \\text{apples}", "\u00b0", "!", "."]


def test_what_is_written_is_read_in_every_statement():
    """Each form around each number: the forms do not know of one another."""
    for form in STATEMENTS:
        for separator in SEPARATORS:
            assert first_number(form.format(f"7{separator}250{separator}001")) == "7250001", (form, separator)
        for currency in CURRENCIES:
            for unit in UNITS:
                for number, expected in (("64", "64"), ("64.50", "64.5"), ("-6", "-6")):
                    assert first_number(form.format(f"{currency}{number}{unit}")) == expected, (
                        form,
                        currency,
                        unit,
                    )
            assert first_number(form.format(f"-{currency}6")) == "-6"
        for sign, expected in (
            ("\u2212", "-6"),
            ("\u2013", "-6"),
            ("+", "6"),
            ("-", "-6"),
            ("minus ", "-6"),
            ("negative ", "-6"),
        ):
            assert first_number(form.format(f"{sign}6")) == expected, (form, sign)


NOT_TAKEN = [
    "3/4",
    "12 / 24",
    "\\frac{3}{4}",
    "2\\frac{1}{2}",
    "2 1/2",
    "2\u00bd",
    "10:30",
    "3 : 2",
    "2^3",
    "2**3",
    "2\u00b3",
    "18-20",
    "$18-$20",
    "18\u201320",
    "18 \u2013 20",
    "1,2,3",
    "4, 5, 6",
    "1,2345",
    "3.5.2",
    "1e4000000",
    "7 million",
    "5k",
    "\\sqrt{2}",
    "2024-05-01",
]


@pytest.mark.parametrize("text", NOT_TAKEN)
def test_what_is_no_plain_number_is_not_taken(text):
    for form in STATEMENTS:
        assert first_number(form.format(text)) is None, form


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 5 - 3 = 2", "5"),
        ("The answer is 5-3=2", "5"),
        ("The answer is 15-year-old", "15"),
        ("The answer is:\n- 6 apples", "6"),
        ("The answer is - 6", "-6"),
        ("The answer is \u2013 6", "6"),
        ("The answer is 12:\n3 apples", "12"),
        ("The answer is 12, 5 of which are red", "12"),
        ("The answer is 7,500 and 8,000", "7500"),
        ("The answer is 7 or 8", "7"),
        ("\\boxed{4, 5}", None),
        ("\\boxed{4 \\text{ and } 5}", None),
        ("\\boxed 5", "5"),
        ("\\boxed{\\text{Total} = 64}", "64"),
        ("\\boxed{}", None),
        ("The answer is 64 25 of them", "64"),
        ("The answer is 1.234.567", "1234567"),
        ("The answer is 1.450,50 euros", "1450.5"),
        ("The answer is \u20b91,23,456.", "123456"),
        ("The answer is 3.125", "3.125"),
        ("The answer is 2.5e3", "2500"),
        ("The answer is 2.5 \\times 10^{3}", "2500"),
        ("The answer is 2 \u00d7 10\u00b3", "2000"),
        ("The answer is 5e-2", "0.05"),
        ("The answer is \uff16\uff14", "64"),
        ("The answer is \u200e64", "64"),
        ("The answer is <<9*2=18>>18", "18"),
        ("\\boxed{18 \\text{ to } 20}", None),
        ("points/answer = 48", None),
        ("an answer 400 less", None),
        ("The next answer was 600. The answer is 3.", "3"),
        ("The answer is not 5", None),
        ("The answer is about the year 5", None),
        ("First \\boxed{5}, so \\boxed{12}", "12"),
        ("\\boxed{5}. The answer is 12", "12"),
        ("12", None),
    ],
)
def test_what_stands_around_a_number(text, number):
    assert first_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 5. Wait. The answer is 12.", "12"),
        ("The answer is 5. Or \\boxed{6}", "6"),
        ("\\boxed{5}, no: the answer is 6", "6"),
        ("The answer is 5. No, the answer is 3/4.", None),
        ("The answer is 5. No, the answer is twelve.", None),
        ("The answer is 12. The answer is correct.", "12"),
        ("#### 1. Find it\nThe answer is 12.\n#### 2. Check it\n", "12"),
        ("#### 12", "12"),
        ("#### 5\n\n#### 12", "12"),
        ("**Answer:** 5\n\nWait.\n\n**Answer:** 7", "7"),
        ("no idea", None),
    ],
)
def test_a_chat_reply_means_its_last_statement(text, number):
    assert first_number(from_last_statement(text)) == number


@given(st.integers(-(10**40), 10**40), st.integers(0, 5))
def test_equal_numbers_are_equal_strings(number, zeros):
    written = [str(number), f"{number:,}", f"{number:_}", f"{number}.{'0' * zeros}" if zeros else str(number)]
    assert {first_number(f"The answer is {text}") for text in written} == {str(number)}


@given(st.text(alphabet="The answer is#\\boxed{}$7,. -\n/:", max_size=60))
def test_any_text_is_read(text):
    found = first_number(text)
    assert found is None or float(found) is not None
    assert isinstance(first_number(from_last_statement(text)), str | None)
