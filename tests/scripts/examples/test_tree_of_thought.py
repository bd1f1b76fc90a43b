"""``examples/tree_of_thought.py`` on a tiny random model: its answers are nonsense, its search is not."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.evals.tiny_text import save_text_model
from tests.scripts.loading import EXAMPLES, load_script
from treeshare import LLM


@pytest.fixture(scope="module")
def script():
    return load_script(EXAMPLES, "tree_of_thought")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("model"))


def test_it_runs(script, model, tmp_path, capsys):
    data = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [data, "--model", model, "--limit", 2, "--depth", 2, "--max-line", 4, "--width", 2]
    assert script.main([*map(str, arguments)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all(1 <= int(line.strip("| ").split("|")[-1]) <= 8 for line in lines[2:])


def test_a_proposal_is_one_line(script, model):
    llm = LLM(model, dtype="float32")
    ends = lambda tokens: tokens[-1] > 120  # noqa: E731
    with llm.search([5, 6, 7], max_tokens=40) as search:
        found = script.propose(
            search, [search.root], 6, ends, np.random.default_rng(0), max_line=9, temperature=1.0
        )
        assert len(found) == 6
        for branch in found:
            assert not any(token > 120 for token in branch.token_ids[:-1])
            assert len(branch.token_ids) == 9 or branch.token_ids[-1] > 120
        assert len(llm.engine.store.pools[0].pages) == 6
    with pytest.raises(SystemExit):
        script.main(["--limit", "x"])
