"""``scripts/bench/families.py`` on tiny models; the work by hand."""

from __future__ import annotations

import json

import pytest

from tests.kernel_levels import LEVELS
from tests.models.tiny import make_model
from tests.scripts.loading import BENCH, load_script


def test_work_by_hand():
    script, recipes = load_script(BENCH, "families"), load_script(BENCH, "layer_families")
    sizes = recipes.Sizes(64, 4, 2, 96, 2, 256, 256)
    forest = script.Forest(preamble=10, own=4, problems=3, samples=2, new_tokens=5)
    layers = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96)
    rows, decoding = 10 + 3 * 4 + 3 * 2 * 4, 3 * 2 * 4
    keys = 10 * 10 / 2 + 3 * 4 * (10 + 4 / 2) + decoding * (10 + 4 + 5 / 2)
    expected = layers * rows + 256 * 64 * (decoding + 3) + 2 * keys * 64 * 2
    assert forest.multiply_adds(make_model(recipes.make_config("llama", sizes))) == expected


@pytest.mark.slow
@pytest.mark.skipif(not LEVELS, reason="no kernels, or none for this CPU")
def test_a_table_that_grows(tmp_path, capsys):
    script = load_script(BENCH, "families")
    common = ["--out", str(tmp_path / "t"), "--tiny", "--rounds", "1", "--levels", LEVELS[-1]]
    for family in ("gpt2", "llama"):
        assert script.main([*common, "--families", family]) == 0
    records = json.loads((tmp_path / "t.json").read_text())["records"]
    assert [record["family"] for record in records] == ["llama", "gpt2"]
    assert all(record["unfused_reason"] is None for record in records)
    assert "| **gpt2** |" in (tmp_path / "t.md").read_text()
