"""``scripts/bench/arrivals.py`` on a tiny model; its sums by hand."""

from __future__ import annotations

import json

from tests.scripts.loading import BENCH, load_script


def test_figures_by_hand():
    step_s, step_rows = [0.1, 0.2, 0.1, 0.4], [(0, 64), (4, 0), (4, 16), (8, 16)]
    found = load_script(BENCH, "arrivals").figures(step_s, step_rows)
    assert found["longest_by_median"] == 2.67
    assert found["longest_step_rows"] == [8, 16]
    assert found["max_rows"] == 64
    assert {kind: steps["count"] for kind, steps in found["steps"].items()} == {
        "all": 4,
        "prompts alone": 1,
        "decoding": 1,
        "both": 2,
    }


def test_requests_come_while_it_runs(model_dir, tmp_path, capsys):
    script = load_script(BENCH, "arrivals")
    problems = [{"prompt_ids": [*range(2, 100), 7 + i], "samples": 3} for i in range(2)]
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"name": "w", "problems": problems, "new_tokens": 20}))
    arguments = [path, "--model", model_dir("llama"), "--rate", 20, "--seconds", 0.5]
    assert script.main([*map(str, arguments)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["requests"] > 1
    assert found["tokens"] == found["requests"] * 3 * 20
    assert script.main([str(path), "--rate", "0"]) == 2
    assert "--rate: got 0.0, expected a number above 0" in capsys.readouterr().err
