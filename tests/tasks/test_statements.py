from __future__ import annotations

import json

import pytest

from treeshare.tasks.statements import alphacode_matcher_for, matcher_for, output_section, tolerance_of


def statement(output, body="Find it."):
    example = "Examples\n\nInput\n\n1\n\nOutput\n\nany of them\n"
    return f"{body}\n\nInput\n\nOne integer, in any order.\n\nOutput\n\n{output}\n\n{example}"


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ("Print one integer.", "tokens"),
        ("Print the order of the cities, then any remark.", "tokens"),
        ("If there are several answers, print any of them.", "unknown(tokens)"),
        ("If there are multiple solutions, you may output any.", "unknown(tokens)"),
        ("Print the vertices in any order.", "unknown(tokens)"),
        ("Print the edges in arbitrary order.", "unknown(tokens)"),
        ("Print any valid sequence.", "unknown(tokens)"),
        ("The maximum over any vertex that you can choose.", "tokens"),
        ("You can print each letter in any case (upper or lower).", "function(tasks/any-case/v1)"),
        (
            "Print YES in any case. If there are many ways, print any of those.",
            "unknown(function(tasks/any-case/v1))",
        ),
        ("Your answer is right if its absolute or relative error is at most 10^{-9}.", "floats(1e-09,1e-09)"),
        ("The absolute or relative error must not exceed 10 - 4.", "floats(0.0001,0.0001)"),
        (
            "All numbers should be correct up to $10^{-6}$ relative or absolute precision.",
            "floats(1e-06,1e-06)",
        ),
        ("An absolute error of 1e-5 is allowed.", "floats(1e-05,1e-05)"),
        ("Print it with an error of at most 0.001 (absolute error).", "floats(0.001,0.001)"),
        ("A relative error is tolerated.", "floats(1e-06,1e-06)"),
    ],
)
def test_the_section_on_output_decides(output, key):
    assert matcher_for(statement(output)).key == key
    example = "-----Examples-----\nInput\nany order\n"
    dashed = f"Find it.\n\n-----Input-----\nx\n\n-----Output-----\n{output}\n\n{example}"
    assert matcher_for(dashed).key == key


@pytest.mark.parametrize(
    ("output", "key"),
    [
        ("Print one integer.", "alphacode(0.0)"),
        ("You can print each letter in any case (upper or lower).", "alphacode(0.0)"),
        ("An absolute error of 1e-3 is allowed.", "alphacode(0.001)"),
        ("If there are several answers, print any of them.", "unknown(alphacode(0.0))"),
    ],
)
def test_alphacodes_comparison_and_what_the_statement_allows_beyond(output, key):
    assert alphacode_matcher_for(statement(output)).key == key


def test_what_is_said_elsewhere_does_not():
    body = "Choose any of them, in any order; the relative error of a scale is 10^-3."
    assert matcher_for(statement("Print one integer.", body)).key == "tokens"
    assert matcher_for("No sections. Print any of them.").key == "unknown(tokens)"
    assert output_section("nothing here") == "nothing here"
    assert tolerance_of("an integer") is None


def test_words_in_any_case():
    matcher = matcher_for(statement("Print YES or NO, in any case."))
    assert matcher.difference("Yes\n", "YES", "") is None
    assert matcher.difference("No\n", "YES", "") is not None


def test_few_contest_statements_leave_a_difference_undecided(shared):
    path = shared("code_contests/codecontests_python_checked.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    undecided = {row["name"] for row in rows if not matcher_for(row["description"]).decides}
    assert "404_C. Restore Graph" in undecided
    assert "1092_F. Tree with Maximum Cost" not in undecided
    assert len(undecided) <= 25
