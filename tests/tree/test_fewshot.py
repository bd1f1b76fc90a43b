import pytest
from hypothesis import given
from hypothesis import strategies as st

from treeshare.errors import ConfigError, DataError
from treeshare.tree import FewShotPrompts


def merging_encode(text):
    """A toy tokeniser: any two equal neighbours merge into one token, from the left."""
    ids, i = [], 0
    while i < len(text):
        pair = text[i] == text[i + 1 : i + 2]
        ids.append(ord(text[i]) + (1000 if pair else 0))
        i += 2 if pair else 1
    return ids


def test_tokens_are_those_of_the_plain_prompt_also_across_borders():
    prompts = FewShotPrompts(preamble="pre:", shots=["a;", ";b"], problems=["bc", "d"], separator="")
    tree = prompts.tree(merging_encode)
    plain = ["pre:a;;bbc", "pre:a;;bd"]
    assert prompts.texts() == plain
    assert [row.tolist() for row in tree.prompts()] == [merging_encode(text) for text in plain]
    # Part by part, ";" + ";b" would not have merged, nor "b" + "bc", so no part's own tokens would do.
    by_part = [token for part in ("pre:", "a;", ";b", "bc") for token in merging_encode(part)]
    assert tree.prompt(0).tolist() != by_part
    assert tree.nodes[0].token_ids.tolist() == merging_encode("pre:a;;")


@given(
    st.text("ab\n", max_size=4),
    st.lists(st.text("ab\n", max_size=4), max_size=3),
    st.lists(st.text("ab", max_size=4)),
)
def test_any_parts_give_the_tokens_of_the_whole(preamble, shots, problems):
    prompts = FewShotPrompts(preamble=preamble, shots=shots, problems=problems, separator="\n")
    rows = [row.tolist() for row in prompts.tree(merging_encode).prompts()]
    assert rows == [merging_encode(text) for text in prompts.texts()]


def test_the_same_shots_for_all():
    prompts = FewShotPrompts(preamble="P", shots=["S1", "S2"], problems=["A", "B"])
    assert prompts.texts() == ["P\n\nS1\n\nS2\n\nA", "P\n\nS1\n\nS2\n\nB"]


def test_shots_of_their_own_share_equal_beginnings():
    prompts = FewShotPrompts(
        preamble="P",
        shots_by_problem=[["S1", "S2"], ["S1", "X"], []],
        problems=["A", "B", "C"],
        separator="|",
    )
    assert prompts.texts() == ["P|S1|S2|A", "P|S1|X|B", "P|C"]
    tree = prompts.tree(lambda text: [ord(c) for c in text])
    assert [node.token_ids.tolist() for node in tree.nodes if node.children] == [
        [ord("P"), ord("|")],
        [83, 49, 124],
    ]


def test_parts_left_out():
    assert FewShotPrompts(problems=["A", ""]).texts() == ["A", ""]
    assert FewShotPrompts(problems=[], shots=["S"]).tree(merging_encode).num_prompts == 0
    assert FewShotPrompts(problems=["A"], shots=[""]).texts() == ["\n\nA"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"problems": "abc"}, "problems: got 'abc', expected a list of strings"),
        ({"problems": [1]}, r"problems: got \[1\]"),
        ({"problems": ["a"], "shots": "abc"}, "shots: got 'abc', expected a list of strings"),
        (
            {"problems": ["a"], "shots": ["s"], "shots_by_problem": [["s"]]},
            "got both shots and shots_by_problem",
        ),
        ({"problems": ["a"], "shots_by_problem": []}, "got '0 lists', expected one for each of 1 problems"),
        ({"problems": ["a"], "shots_by_problem": ["s"]}, r"shots_by_problem\[0\]: got 's'"),
    ],
)
def test_bad_parts_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        FewShotPrompts(**arguments)


def test_an_encoder_that_gives_no_token_ids_is_named():
    with pytest.raises(DataError, match="prompt 0: got values of type <U1"):
        FewShotPrompts(problems=["ab"]).tree(list)
