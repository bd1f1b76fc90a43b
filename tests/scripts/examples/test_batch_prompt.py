"""``examples/batch_prompt.py`` on a tiny random model: its answers are nonsense, its figures are not."""

from __future__ import annotations

import json
import re

import pytest

from tests.evals.tiny_text import save_text_model
from tests.scripts.loading import EXAMPLES, load_script


@pytest.fixture(scope="module")
def script():
    return load_script(EXAMPLES, "batch_prompt")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("model"))


def test_both_methods_are_measured(script, model, tmp_path, capsys):
    data = tmp_path / "gsm8k.jsonl"
    rows = [{"question": f"What is {i} + {i}?", "answer": f"#### {2 * i}"} for i in range(3)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--data", data, "--batch-size", 2, "--rounds", 2, "--max-tokens", 6, "--model", model]
    assert script.main([*map(str, arguments), "--dtype", "float32"]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [re.match("BatchPrompt|tree", row[0])[0] for row in cells] == ["BatchPrompt", "tree"]
    for name, right, logical, unique, new, computed, billed, seconds in cells:
        assert right.endswith("of 3")
        assert 0 < int(unique) <= int(logical)
        assert 0 < int(new) <= (2 * 2 * 2 * 6 if name.startswith("Batch") else 3 * 2 * 6)
        assert float(computed) == pytest.approx((int(unique) + int(new)) / 3, abs=0.06)
        assert float(billed) == pytest.approx((int(logical) + int(new)) / 3, abs=0.06)
        assert float(seconds) > 0


def test_a_users_mistake_is_one_line(script, tmp_path, capsys):
    assert script.main(["--data", str(tmp_path / "missing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("batch_prompt: data: cannot read")
    assert error.count("\n") == 1
