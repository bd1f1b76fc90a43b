import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tree_cases import prompt_lists

from treeshare.tree import PromptTree, render_tree


def decode(ids):
    return "".join(map(chr, ids))


def encode(text):
    return [ord(c) for c in text]


def test_a_small_tree():
    tree = PromptTree.from_prompts([encode(t) for t in ("def f():\n", "def f():\n\tpass", "def g():\n")])
    assert render_tree(tree, [1, 2, 3], decode=decode, bytes_per_token=1024).splitlines() == [
        "4 tokens [0, 4)  3 prompts, 6 completions  'def '",
        "├─ 5 tokens [4, 9)  2 prompts, 3 completions  'f():\\n'",
        "│  └─ 5 tokens [9, 14)  1 prompt, 2 completions  '\\tpass'",
        "└─ 5 tokens [4, 9)  1 prompt, 3 completions  'g():\\n'",
        "3 prompts, 6 completions, 4 nodes, depth 3",
        "64 logical tokens, 19 unique: sharing ratio 3.37",
        "prompt KV 19.0 KiB instead of 64.0 KiB",
    ]


def test_without_decode_it_shows_token_ids():
    text = render_tree(PromptTree.from_prompts([list(range(100, 120)), [100, 7]]))
    assert text.splitlines()[:3] == [
        "1 token [0, 1)  2 prompts, 2 completions  (100)",
        "├─ 19 tokens [1, 20)  1 prompt, 1 completion  (101 102 103 104 105 … 118 119)",
        "└─ 1 token [1, 2)  1 prompt, 1 completion  (7)",
    ]


def test_big_fan_outs_are_elided_but_never_a_single_child():
    prompts = [[1, 10 + i, 5] for i in range(20)]
    lines = render_tree(PromptTree.from_prompts(prompts), max_children=3).splitlines()
    assert len(lines) == 1 + 3 + 1 + 2
    assert lines[4] == "└─ … 17 more: 17 nodes, 34 tokens, 17 prompts"
    assert "more" not in render_tree(PromptTree.from_prompts(prompts), max_children=19)


def test_deep_nodes_are_elided_and_nothing_recurses():
    row = np.arange(5000)
    text = render_tree(PromptTree.from_prompts([row[:length] for length in range(1, 5001)]), max_depth=3)
    lines = text.splitlines()
    assert lines[3].startswith("      └─ 1 token [3, 4)")
    assert lines[4] == "         └─ … deeper: 4,996 nodes, 4,996 tokens, 4,996 prompts"


def test_snippets_are_short_and_cannot_move_the_cursor():
    nasty = "\x1b[2J\r\n\x9b\u202e" + "x" * 500 + "end"
    lines = render_tree(PromptTree.from_prompts([encode(nasty)]), decode=decode, max_snippet=20).splitlines()
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    assert lines[0].endswith(r"'\x1b[2J\r\n\x9b\u202exxxxx…xxxend'")


def test_an_empty_tree():
    assert render_tree(PromptTree.from_prompts([]), bytes_per_token=2).splitlines() == [
        "0 tokens [0, 0)  0 prompts, 0 completions",
        "0 prompts, 0 completions, 1 node, depth 0",
        "0 logical tokens, 0 unique: sharing ratio 1.00",
        "prompt KV 0 bytes instead of 0 bytes",
    ]


def test_large_sizes_have_units():
    tree = PromptTree.from_prompts([[1] * 1024])
    assert "prompt KV 1.0 GiB instead of 5.0 TiB" in render_tree(tree, 5 * 1024, bytes_per_token=2**20)


@given(prompt_lists, st.integers(1, 4), st.integers(0, 4))
def test_every_node_is_drawn_or_counted_once(prompts, max_children, max_depth):
    tree = PromptTree.from_prompts(prompts)
    lines = render_tree(tree, max_children=max_children, max_depth=max_depth).splitlines()[:-2]
    left_out = [line for line in lines if "…" in line and "node" in line]
    counted = sum(int(line.split(": ")[1].split(" node")[0]) for line in left_out)
    assert len(lines) - len(left_out) + counted == len(tree.nodes)
