"""``verify``: its table, and how it ends."""

from __future__ import annotations

import re

import pytest
import torch

from tests.cli.conftest import write_lines
from tests.cli.text_model import saved_text_model
from treeshare.attention.native import NativeAttention
from treeshare.config import FoldCost
from treeshare.engine.runner import ModelRunner
from treeshare.engine.verify import FaultyRunner
from treeshare.models import load_model

FRONT = "import math\nimport re\n\n\ndef half(number):\n    return number / 2\n\n\n" * 3
NAMES = ("twice", "area", "last", "upper", "words")


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model of bfloat16 that the compiled kernels compute."""
    folder = tmp_path_factory.mktemp("models")
    return saved_text_model(folder, torch.bfloat16, hidden_size=64, intermediate_size=96)


@pytest.fixture
def has_kernels(model):
    if not NativeAttention.can_read(load_model(model, "bfloat16").geometry):
        pytest.skip("no compiled kernels are built for this CPU")


@pytest.fixture
def verify(cli, model, tmp_path, monkeypatch):
    """``verify(option, ...)`` on five functions whose long common beginning is a node on any machine."""
    cost = FoldCost(launch_cost=0, merge_cost=0)
    monkeypatch.setattr("treeshare.engine.llm.fold_cost_of", lambda *_: cost)

    def run(*arguments):
        records = [
            {
                "task_id": f"T/{i}",
                "prompt": f"{FRONT}def {name}(value):\n    return",
                "entry_point": name,
                "canonical_solution": " value\n",
                "test": "def check(f):\n    pass\n",
            }
            for i, name in enumerate(NAMES)
        ]
        data = write_lines(tmp_path / "functions.jsonl", records)
        return cli("verify", "--data", data, "--model", model, "--threads", 1, *arguments)

    return run


def table(result):
    """Cells by the first one, without the line that says what was run."""
    rows = [line.strip("| ").split(" | ") for line in result.out.splitlines() if line.startswith("| ")]
    assert rows.pop(0) == [
        *(
            "way",
            "completions",
            "tokens differ",
            "log-probabilities differ",
            "same bits",
            "largest difference",
        )
    ]
    return {cells[0]: cells[1:] for cells in rows}


def test_verify(verify, has_kernels):
    result = verify("--max-tokens", 5)
    assert result.status == 0, result.err
    said = re.match(
        r"4 prompts, 8 completions, bfloat16; 1 shared node with (\d+) tokens, and 4 prompts below",
        result.out,
    )
    assert int(said[1]) >= len(FRONT)
    rows = table(result)
    control = rows.popitem()
    seen = re.fullmatch(r"control: an inserted fault: detected in (\d) of 8", control[0])
    assert 1 <= int(seen[1]) == int(control[1][2])
    all_, half = ["8", "0", "0", "40 of 40 positions", "0"], ["4", "0", "0", "20 of 20 positions", "0"]
    assert rows == {
        "each prompt alone": all_,
        "every second prompt": half,
        "n = 1": half,
        "n = 4": all_,
        "prompts in reverse order": all_,
        "max_num_seqs = 2": all_,
        "a row for each completion": all_,
        "sharing: one-level": all_,
        "sharing: none": all_,
    }
    assert "bfloat16, loaded in" in result.err
    assert "completions: 88 of 88" in result.err


def test_options(verify, has_kernels):
    result = verify("--max-tokens", 3, "-n", 3, "--limit", 3, "--shots", 1, "--seed", 5, "--temperature", 0)
    assert result.status == 0, result.err
    assert result.out.startswith("3 prompts, 9 completions, bfloat16; ")
    assert table(result)["n = 6"][0] == "9"


def test_it_fails_where_bits_differ(verify, has_kernels, monkeypatch):
    forward = ModelRunner.forward

    def disturbed(self, layout, tokens, logits_rows):
        logits = forward(self, layout, tokens, logits_rows)
        return logits * 1.01 if self._config.sharing == "none" else logits

    monkeypatch.setattr(ModelRunner, "forward", disturbed)
    result = verify("--max-tokens", 3)
    assert result.status == 1
    assert "verify: 1 of 9 ways give different bits: sharing: none" in result.err
    assert table(result)["sharing: none"][2] == "8"


def test_float32_is_compared_to_the_last_bit_too(verify):
    result = verify("--max-tokens", 3, "--dtype", "float32")
    assert ", float32; 1 shared node with" in result.out
    rows = table(result)
    rows.popitem()
    differs = any(cells[2] != "0" for cells in rows.values())
    assert result.status == int(differs), "no kernels of float32: torch's sums may know the number of rows"


def test_it_fails_where_its_own_fault_is_not_seen(verify, has_kernels, monkeypatch):
    monkeypatch.setattr(FaultyRunner, "forward", ModelRunner.forward)
    result = verify("--max-tokens", 3)
    assert result.status == 1
    assert "control: an inserted fault: detected in 0 of 8" in result.out
    assert "the inserted fault was not detected, so this check proves nothing" in result.err


def test_nothing_shared_is_refused(cli, model, tmp_path, monkeypatch):
    monkeypatch.setattr("treeshare.engine.llm.fold_cost_of", lambda *_: FoldCost())
    records = [
        {"task_id": f"T/{i}", "prompt": f"{name} = ", "entry_point": "f", "test": "def check(f):\n    pass\n"}
        for i, name in enumerate(NAMES)
    ]
    result = cli("verify", "--data", write_lines(tmp_path / "own.jsonl", records), "--model", model)
    assert "got 4 prompts of which no node is shared (at most " in result.refusal
    assert "--shots" in result.refusal
    assert not result.out


@pytest.mark.parametrize(("option", "value"), [("-n", 1), ("--limit", 1), ("--max-tokens", 1)])
def test_what_could_prove_nothing_is_refused(verify, option, value):
    assert option in verify(option, value).refusal
