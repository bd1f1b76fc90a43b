"""The judge against pairs of answers, its own laws, and seeded faults."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evals.math_judge.pairs import PAIRS, SYMBOLIC, WRITTEN, pairs_of
from tests.evals.math_judge.untidy_pairs import COMMON, UNTIDY
from tests.examples import examples
from treeshare.evals.math_judge import MathJudge, arithmetic, exact_number, quantities, syntax, units
from treeshare.evals.math_judge import compare as compare_module
from treeshare.evals.math_judge.__main__ import main
from treeshare.evals.math_judge.compare import Outcome
from treeshare.evals.math_judge.reading import read_answer

SHARED = Path(os.environ.get("TREESHARE_SHARED", Path(__file__).parents[4] / "shared")) / "data"
ANSWERS = sorted({text for _, *both in pairs_of(PAIRS) for text in both})


class NoSymbols:
    """Stands where sympy would be asked, and counts."""

    def __init__(self):
        self.asked = 0

    def compare(self, first, second, *, up_to_factor=False):
        self.asked += 1
        return Outcome(right=None, layer="symbols", reason="not asked")


@pytest.fixture
def plain():
    found = MathJudge()
    found.symbols = NoSymbols()
    return found


def wrong_pairs(judge):
    """Pairs that a judge does not judge as they are."""
    return [row for row in pairs_of(PAIRS) if judge.judge(*row[1:]).right != row[0]]


def test_pairs_without_symbols(plain):
    assert wrong_pairs(plain) == []


@pytest.mark.parametrize("pairs", [WRITTEN, UNTIDY, COMMON], ids=["written", "untidy", "common"])
def test_ways_to_write_an_answer(plain, pairs):
    """Both orders of the two give one verdict, and what is the same for a vote is right."""
    for is_right, gold, answer in pairs_of(pairs):
        found = plain.judge(gold, answer)
        assert found.right == is_right, (gold, answer, found.reason)
        assert plain.judge(answer, gold).right == is_right, (answer, gold)
        assert is_right or not plain.same(gold, answer)


def test_a_logarithm_without_a_base_has_one_in_both(judge):
    for base in ("10", "e"):
        assert judge.judge("2", rf"\log {base}^2").right
    assert not judge.judge(r"\log 100", r"\log e^2").right
    assert not judge.judge("2", r"\ln 100").right
    assert not judge.same("2", r"\log 100")


MARKED = (
    r"{ } ( ) [ ] ^ _ \frac \sqrt \text{ \left \right \log \pmod{ \dot{ $ % , . : | ! - + / = < \le \ne \cup "
    r"\pm & \\ \begin{pmatrix} \end{pmatrix} \boxed{ \approx \setminus \{ \} million th ½ ² ⁻ √ ∞ ① 1/0 0^0 "
    r"99999! (A) 10^{10^{10}}"
)


@examples(150)
@given(
    st.lists(st.sampled_from([*MARKED.split(), *ANSWERS]), max_size=8),
    st.sampled_from(ANSWERS),
    st.booleans(),
)
def test_whatever_is_written_has_one_verdict(pieces, other, is_spaced):
    judge = MathJudge()
    judge.symbols = NoSymbols()
    text = (" " if is_spaced else "").join(pieces)
    found = judge.judge(text, other)
    assert judge.judge(other, text) == found or not found.right
    assert judge.judge(other, text).right == found.right
    assert judge.same(other, text) == judge.same(text, other)
    assert found.right or not judge.same(text, other)


def test_items_find_partners_whichever_comes_first(plain):
    """5 is equal to 5 cm and to 5 m: it takes the one that nothing else can have."""
    gold = r"\{5, 5\text{ cm}\}"
    for answer in (r"\{5\text{ cm}, 5\text{ m}\}", r"\{5\text{ m}, 5\text{ cm}\}"):
        assert plain.judge(gold, answer).right
        assert plain.judge(answer, gold).right
    assert not plain.judge(r"\{5\text{ cm}, 6\}", r"\{5, 5\text{ m}\}").right


def test_pairs_with_symbols(judge):
    found = [(row, judge.judge(*row[1:])) for row in pairs_of(SYMBOLIC)]
    assert [(row, said.reason) for row, said in found if said.right != row[0]] == []
    assert judge.symbols.helper.num_started == 1


def records(name):
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"development data is missing: {path}; set TREESHARE_SHARED")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_shared_pairs(judge):
    rows = records("math_pairs/pairs.jsonl")
    assert len(rows) == 50
    for row in rows:
        assert judge.judge(row["gold"], row["answer"]).right == row["equivalent"], row


def test_gold_answers_are_their_own_and_of_no_other(judge):
    """All 500 against themselves, as a formula, in a box; and pairs that should differ do."""
    golds = [row["answer"] for row in records("math500/math500.jsonl")]
    for gold in golds:
        for form in (gold, f"${gold}$", f"\\boxed{{{gold}}}", f" {gold}."):
            assert judge.judge(gold, form).right, form
    rng = random.Random(0)
    pairs = [rng.sample(golds, 2) for _ in range(2000)]
    equal = [(a, b) for a, b in pairs if a != b and judge.judge(a, b).right]
    numbers = [(exact_number(a), exact_number(b)) for a, b in equal]
    assert all(a == b for a, b in numbers if a and b)


def test_at_least_200_verdicts_a_second_where_no_symbols_are_needed(plain):
    """Far more on an idle machine: this is processor time, with texts that are read anew each time."""
    began = time.process_time()
    rows = pairs_of(PAIRS) * 2
    for i, (_, gold, answer) in enumerate(rows):
        plain.judge(f"{gold}{' ' * (i // len(ANSWERS))}", answer)
    assert len(rows) / (time.process_time() - began) > 200


# --- laws ---


def test_it_is_reflexive_and_symmetric(plain):
    for text in ANSWERS:
        assert plain.judge(text, text).right, text
    for a, b in random.Random(1).sample(list(itertools.combinations(ANSWERS, 2)), 2000):
        assert plain.judge(a, b).right == plain.judge(b, a).right
        assert plain.same(a, b) == plain.same(b, a)


def test_strictly_it_is_an_equivalence(plain):
    """What is the same as one is the same as all that are the same as that; and is right for each other."""
    classes = []
    for text in ANSWERS:
        found = [members for members in classes if any(plain.same(member, text) for member in members)]
        assert len(found) <= 1, text
        if found:
            assert [member for member in found[0] if not plain.same(member, text)] == []
            assert [member for member in found[0] if not plain.judge(member, text).right] == []
            found[0].append(text)
        else:
            classes.append([text])
    assert max(map(len, classes)) > 3


def test_the_order_is_real_symmetry_of_the_comparison_too(plain):
    """Whatever the layers say; unread texts of both sides included."""
    for _, gold, answer in pairs_of(PAIRS):
        one, other = read_answer(gold), read_answer(answer)
        said = [compare_module.compare(*both, plain.symbols).right for both in ((one, other), (other, one))]
        assert said[0] == said[1], (gold, answer)


@pytest.mark.parametrize("empty", ["", " ", "$$", "\\text{}", "{}", "\\boxed{}", "\n"])
def test_nothing_is_never_right(judge, empty):
    assert not judge.judge(empty, empty).right
    assert not judge.judge(empty, "5").right
    assert not judge.judge("5", empty).right


NUMBERS = st.fractions(min_value=-50, max_value=50, max_denominator=12)


def latex(number):
    sign = "-" if number < 0 else ""
    return f"{sign}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def mixed(number):
    whole, rest = divmod(abs(number), 1)
    sign = "-" if number < 0 else ""
    return f"{sign}{whole}{latex(rest)}" if whole and rest else latex(number)


@examples(60)
@given(NUMBERS, NUMBERS)
def test_numbers_are_equal_exactly_where_they_are(a, b):
    judge = MathJudge()
    judge.symbols = NoSymbols()
    for write_a, write_b in ((latex, mixed), (str, latex), (mixed, str)):
        assert judge.judge(write_a(a), write_b(b)).right == (a == b)
    number = exact_number(mixed(a))
    assert Fraction(number) == a
    assert judge.symbols.asked == 0


# --- seeded faults ---

FAULTS = {
    "units are not looked at": (units, "_NO_UNITS", frozenset(units._NAMES)),
    "a base is not looked at": (compare_module._Comparison, "_conflict", lambda self, a, b: ""),
    "squares stay in roots": (arithmetic, "_without_squares", lambda radicand: (1, radicand)),
    "mixed numbers are products": (syntax._Parser, "_fraction_of_digits", lambda self, ahead: None),
    "tuples have no order": (
        compare_module._Comparison,
        "_in_order",
        compare_module._Comparison._in_any_order,
    ),
    "lists have an order": (
        compare_module._Comparison,
        "_in_any_order",
        compare_module._Comparison._in_order,
    ),
    "no percent sign": (quantities, "_without_percent", lambda tokens: (tokens, False)),
    "decimals are rounded": (
        syntax,
        "number_of",
        lambda text: Fraction(text.rstrip(".") or 0).limit_denominator(100),
    ),
    "equations have one form": (compare_module, "up_to_a_factor", lambda node, **_: node),
    "no names": (compare_module, "_is_loose", lambda name: True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(plain, monkeypatch, fault):
    monkeypatch.setattr(*FAULTS[fault])
    assert wrong_pairs(plain) != []


# --- its command ---


def test_the_command_shows_the_layers(capsys):
    assert main([r"\frac{14}{3}", r"4\frac{2}{3}"]) == 0
    printed = capsys.readouterr().out
    assert "14/3" in printed
    assert "right, by exact numbers" in printed
    assert "symbols were not needed" in printed
    assert main(["52_8", "52_7"]) == 1
    assert "wrong, by types: other bases: 8 and 7" in capsys.readouterr().out
