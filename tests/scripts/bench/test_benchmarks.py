"""The benchmark scripts on a tiny model: its speeds say nothing, but they must be added up right."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from tests.scripts.loading import BENCH, load_script

PEER = """
import json, sys
print("noise {")
for path in sys.argv[1:]:
    samples = sum(p["samples"] for p in json.load(open(path))["problems"])
    print(json.dumps({"engine": "peer 1.0", "tok_s": 1000.0 * samples, "load_s": 1.5, "max_rss_mib": 7}))
"""

SHAPE = ["--prefix", "32", "--own", "4", "--new-tokens", "4", "--vocabulary", "100", "--rounds", "1"]


@pytest.fixture
def scripts():
    names = ("attention_cases", "bench", "kernel_bench", "measuring")
    return SimpleNamespace(**{name: load_script(BENCH, name) for name in names})


@pytest.fixture
def in_process(scripts, cli, monkeypatch):
    """Our command line runs in this process, which has its imports behind it; a peer in one of its own."""
    run = subprocess.run

    def run_here(words, **options):
        if words[1:3] != ["-m", "treeshare.cli"]:
            return run(words, **options)
        result = cli(*words[3:], "--threads", 1)
        return subprocess.CompletedProcess(words, result.status, result.out, result.err)

    monkeypatch.setattr(scripts.measuring.subprocess, "run", run_here)


@pytest.fixture
def peer(tmp_path):
    path = tmp_path / "peer.py"
    path.write_text(PEER)
    return f"peer={sys.executable} {path}"


def rows_of(out):
    """The cells of a report's tables, by the first one."""
    lines = [line.strip("| ").split(" | ") for line in out.with_suffix(".md").read_text().splitlines()]
    return {cells[0]: cells[1:] for cells in lines if len(cells) > 1}


def records_of(out):
    return json.loads(out.with_suffix(".json").read_text())["records"]


def check_picture(out):
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("in_process")
def test_compare(scripts, peer, model_dir, tmp_path):
    workload = tmp_path / "small.json"
    workload.write_text(
        json.dumps(scripts.bench.forest(prefix=16, own=4, problems=2, samples=3, new_tokens=4, vocabulary=90))
    )
    out = tmp_path / "new" / "results"
    command = ["compare", workload, "--peer", peer, "--model", model_dir("llama"), "--rounds", 1]
    command = list(map(str, [*command, "--out", out]))
    assert scripts.bench.main(command) == 0
    assert len(records_of(out)) == 3
    assert scripts.bench.main([*command, "--append"]) == 0
    records = records_of(out)
    names = ["treeshare", "ceiling (attention off)", "peer"]
    assert [record["series"] for record in records] == names * 2
    assert {record["tokens"] for record in records if "tokens" in record} == {24}
    assert {record["attention"] for record in records if record["series"] == names[1]} == {"off"}
    rows = rows_of(out)
    ours = sum(record["tok_s"] for record in records if record["series"] == names[0]) / 2
    assert rows["small"][2] == "6000 (6000-6000)"
    assert float(rows["small"][4]) == pytest.approx(ours / 6000, abs=0.006)
    assert rows["peer"] == ["peer 1.0", *rows["peer"][1:]]
    text = out.with_suffix(".md").read_text()
    assert "torch " + importlib.metadata.version("torch") in text
    assert str(tmp_path) not in text
    check_picture(out)


@pytest.mark.usefixtures("in_process")
def test_hydragen(scripts, model_dir, tmp_path):
    out = tmp_path / "table"
    command = ["hydragen", "--problems", "2", "--samples", "4", "--batch", "2", *SHAPE, "--out", str(out)]
    assert scripts.bench.main([*command, "--model", str(model_dir("llama"))]) == 0
    records = records_of(out)
    assert [record["sharing"] for record in records] == ["none", "one-level", "tree", "tree", "tree"]
    rows = rows_of(out)
    assert rows["no sharing"][:2] == ["2", str(2 * (32 + 4 + 4))]
    assert rows["tree, equal batch"][:2] == ["2", str(32 + 4 + 2 * 4)]
    assert rows["one level (only the root is shared)"][:2] == ["2", str(32 + 2 * (4 + 4))]
    saved = (2 * 40 - (32 + 2 * 4)) // 4
    assert rows["tree, the batch the saved memory allows"][0] == str(min(saved, 8))
    check_picture(out)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("over", "values"), [("samples", [1, 5]), ("depth", [1, 3])])
def test_sweep(scripts, peer, model_dir, tmp_path, over, values):
    out = tmp_path / "sweep"
    command = ["sweep", "--over", over, "--values", ",".join(map(str, values)), "--peer", peer, *SHAPE]
    command += ["--problems", "4", "--out", str(out), "--model", str(model_dir("llama"))]
    command += ["--samples", "2"] if over == "depth" else []
    assert scripts.bench.main(command) == 0
    ours = [record for record in records_of(out) if record["series"] == "treeshare"]
    assert [record["workload"] for record in ours] == [f"{over} {value}" for value in values]
    samples = [4 * value for value in values] if over == "samples" else [8, 8]
    assert [record["tokens"] for record in ours] == [4 * count for count in samples]
    peers = [record["tok_s"] for record in records_of(out) if record["series"] == "peer"]
    assert peers == [1000.0 * count for count in samples]
    if (
        over == "depth"
    ):  # 32 tokens in one node; in three levels of 10, 11 and 11 with one, two and four nodes
        assert [record["unique_tokens"] for record in ours] == [32 + 16, 10 + 2 * 11 + 4 * 11 + 16]
    check_picture(out)


def test_kernels(scripts, tmp_path):
    out = tmp_path / "kernels"
    assert scripts.kernel_bench.main(["--tiny", "--repeats", "1", "--out", str(out)]) == 0
    records = records_of(out)["attention"]
    assert {record["case"] for record in records} == {"tiny", "tiny causal"}
    for record in records:
        assert record["times_flash"] == pytest.approx(record["flash_ms"] / record["ms"])
        assert record["of_roof"] >= record["of_matmul_rate"]
    check_picture(out)


def test_work_of_a_case(scripts):
    case = scripts.attention_cases.Case(name="", rows=2, root=3, leaves=2, leaf=5, private=1)
    pairs = 2 * (3 + 5 + 2)
    assert case.flops == 4 * pairs * 9 * 64
    causal = scripts.attention_cases.Case(name="", rows=2, root=4, causal=True)
    assert causal.flops == 4 * (3 + 4) * 9 * 64


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["compare", "missing.json"], "workload: cannot read missing.json"),
        (["hydragen", "--rounds", "0"], "--rounds: got 0, expected a positive number"),
        (
            ["sweep", "--over", "prefix", "--peer", "nameless"],
            "--peer: got 'nameless', expected NAME=COMMAND",
        ),
    ],
)
def test_a_mistake_is_one_line(scripts, tmp_path, capsys, command, message):
    assert scripts.bench.main([*command, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"bench: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such model')", "one: status 1: no such model"),
        ("print('{}')", "one: reported 0 of 1 workloads"),
    ],
)
def test_an_engine_that_fails_is_named(scripts, tmp_path, code, message):
    series = scripts.measuring.Series(name="one", command=(sys.executable, "-c", code))
    with pytest.raises(scripts.measuring.DataError, match=message):
        series.run([tmp_path / "w.json"])


def test_company_is_who_else_is_busy(scripts):
    company = scripts.measuring.Company()
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        time.sleep(1)
        others = company.measure()["others_cores"]
        other.kill()
    assert others > 0.2


def test_paths_stay_at_home(scripts, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["/a/b/bench.py", "compare", "--peer", "p=env X=/c/d.so:/e/f.so /g/h/python"]
    )
    assert scripts.measuring.shown_command() == (
        "python scripts/bench/bench.py compare --peer 'p=env X=d.so:f.so python'"
    )


@pytest.mark.slow
def test_as_its_user_runs_it(model_dir, tmp_path):
    out = tmp_path / "table"
    command = [sys.executable, BENCH / "bench.py", "sweep", "--over", "samples", "--values", "1,2", *SHAPE]
    command += ["--model", model_dir("llama"), "--out", out]
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    assert len(records_of(out)) == 4
