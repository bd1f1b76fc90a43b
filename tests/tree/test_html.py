"""A tree in a notebook."""

from __future__ import annotations

import sys
import types
from html.parser import HTMLParser

import pytest

from treeshare.tree import PromptTree
from treeshare.tree.html import tree_html

SHOTS = [1, 2, 3, 4]


class _Tags(HTMLParser):
    """Checks that tags are closed in order; keeps the text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.nodes = [], [], 0
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.nodes += tag == "code"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def _tree(num_prompts=3):
    return PromptTree.from_prompts([[*SHOTS, 10 + i, 11] for i in range(num_prompts)])


def test_every_node_and_the_totals():
    page = _Tags(tree_html(_tree(), 8))
    assert page.nodes == 4
    text = " ".join(page.text)
    assert "3 prompts, 24 completions, 4 nodes" in text
    assert "4 tokens, 24 completions" in text
    assert "(12 11)" in text


def test_what_is_left_out_is_counted():
    page = _Tags(tree_html(_tree(40), max_children=4))
    assert page.nodes == 5
    assert "36 more" in " ".join(page.text)


def test_text_of_a_prompt_is_never_markup():
    page = tree_html(_tree(), decode=lambda ids: "<script>alert(1)</script>&" * (len(ids) > 2))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    _Tags(page)


def test_show_prints_where_there_is_no_notebook(capsys):
    _tree().show(2)
    assert "3 prompts, 6 completions" in capsys.readouterr().out


@pytest.mark.parametrize("is_notebook", [True, False])
def test_show_displays_in_a_notebook(monkeypatch, capsys, is_notebook):
    shown = []
    package, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: types.SimpleNamespace(**({"kernel": 1} if is_notebook else {}))
    display.HTML, display.display = str, shown.append
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    tree = _tree()
    tree.show()
    assert shown == ([tree._repr_html_()] if is_notebook else [])
    assert bool(capsys.readouterr().out) != is_notebook


def test_a_long_chain_is_drawn_without_recursion():
    deep = PromptTree.from_prompts([[1] * i for i in range(1, 3000)])
    _Tags(tree_html(deep, max_depth=5000))
