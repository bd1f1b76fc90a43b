"""A user's mistake: exit status 2, one line on stderr that names it, no traceback, nothing lost or left."""

from __future__ import annotations

import json
import os

import pytest

from tests.cli.conftest import lines_of, write_lines

SAMPLE = ["sample", "--task", "humaneval"]


def run_text(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--task", "humanevil"], "--task: got 'humanevil', expected one of "),
        (["--task", ""], "--task: got ''"),
        (["--limit", 0], "--limit"),
        (["--limit", "many"], "--limit"),
        (["-n", 0], "-n"),
        (["-n", -1], "-n"),
        (["-n", 10**20], "-n"),
        (["-n", 10**6], "-n"),
        (["-n", "1e3"], "-n"),
        (["-n", "nan"], "-n"),
        (["--temperature", "nan"], "temperature: got nan"),
        (["--temperature", "inf"], "temperature: got inf"),
        (["--temperature", -0.1], "temperature: got -0.1"),
        (["--temperature", "warm"], "--temperature"),
        (["--top-p", 0], "top_p: got 0"),
        (["--top-p", 1.1], "top_p: got 1.1"),
        (["--top-p", "nan"], "top_p: got nan"),
        (["--top-k", -2], "top_k: got -2"),
        (["--max-tokens", 0], "--max-tokens"),
        (["--max-tokens", -5], "--max-tokens"),
        (["--stop", ""], "stop: got "),
        (["--regex", "a", "--choice", "b"], "--json-schema, --regex, --choice: got more than one"),
        (["--choice", ""], "structured_outputs: choice: got ['']"),
        (["--json-schema", "nowhere"], "JSON schema: cannot read nowhere: No such file or directory"),
        (["--logit-bias", "[1]"], "--logit-bias: got '[1]', expected a JSON object"),
        (["--logit-bias", '{"5": 101}'], "logit_bias[5]: got 101, expected "),
        (["--logit-bias", '{"259": 1}'], "logit_bias: got 259, expected token ids in [0, 259)"),
        (["--allowed-token-id", -1], "--allowed-token-id"),
        (["--allowed-token-id", 259], "allowed_token_ids: got 259"),
        (["--bad-word", ""], "bad_words: got "),
        (["--seed", -1], "--seed"),
        (["--seed", 2**64], "seed: got "),
        (["--threads", 0], "--threads"),
        (["--threads", 10**9], "--threads"),
        (["--max-num-seqs", 0], "--max-num-seqs"),
        (["--max-num-seqs", 10**9], "--max-num-seqs"),
        (["--dtype", "float8"], "'--dtype': 'float8' is not one of 'auto', 'bfloat16', 'float32'"),
        (["--model", ""], "model: got "),
        (["--model", "./nowhere"], "model: got './nowhere'"),
        (["--model", "nowhere.gguf"], "model: got nowhere.gguf, expected an existing .gguf file"),
        (["--data", "nowhere.jsonl"], "data: cannot read nowhere.jsonl: No such file or directory"),
        (["--data", "."], "data: cannot read .: Is a directory"),
        (["--temprature", 1], "--temprature"),
        (["extra"], "extra"),
    ],
)
def test_options(cli, sampling, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    assert named in cli(*sampling, "--out", "run", *arguments).refusal
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["sample", "evaluate", "bench"])
def test_what_is_required(cli, command):
    assert "Missing" in cli(command).refusal


def test_no_command_and_an_unknown_one(cli):
    result = cli()
    assert result.status == 2
    assert "Usage: treeshare" in result.out + result.err
    assert "No such command 'smaple'" in cli("smaple").refusal


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "contains no record"),
        (b"\n \n", "contains no record"),
        (b"{", "line 1"),
        (b'{"task_id": "T/0"\n', "line 1"),
        (b"[]\n", "contains no record"),
        (b"1\n", "line 1"),
        (b"\xff\xfe\n", "is in UTF-16"),
        (b'{"task_id": 5, "prompt": "", "entry_point": "", "test": ""}\n', "line 1, task_id"),
        (b'{"task_id": "T/0", "prompt": "x"}\n', "line 1, entry_point"),
        (b"\x1f\x8bgarbage", "cannot read"),
        (b'{"task_id": "a\\u001b[2J", "prompt": null}', "line 1, prompt"),
        (b"[" * 100_000, "line 1"),
    ],
)
def test_data_files(cli, sampling, tmp_path, content, named):
    (tmp_path / "problems.jsonl").write_bytes(content)
    refusal = cli(*sampling, "--out", tmp_path / "run").refusal
    assert "data: " in refusal
    assert named in refusal
    assert not (tmp_path / "run").exists()


def test_a_broken_line_is_named_by_its_number(cli, sampling, tmp_path, problems):
    with write_lines(tmp_path / "problems.jsonl", problems).open("a") as file:
        file.write('{"task_id": "T/3"}\n')
    assert "line 4, prompt" in cli(*sampling, "--out", tmp_path / "run").refusal


def test_a_task_id_that_comes_twice(cli, sampling, tmp_path, problems):
    write_lines(tmp_path / "problems.jsonl", [*problems, problems[0]])
    assert "T/0 occurs twice" in cli(*sampling, "--out", tmp_path / "run").refusal


def test_what_cannot_be_an_out_folder(cli, sampling, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "not empty and contains no run" in cli(*sampling, "--out", tmp_path / "thesis").refusal
    assert "Not a directory" in cli(*sampling, "--out", tmp_path / "file").refusal
    assert "Not a directory" in cli(*sampling, "--out", tmp_path / "file" / "run").refusal
    assert "cannot use" in cli(*sampling, "--out", tmp_path / "loop").refusal
    assert "cannot use" in cli(*sampling, "--out", tmp_path / ("x" * 300)).refusal
    assert run_text(tmp_path / "thesis") == {"thesis.tex": b"x"}
    assert (tmp_path / "file").read_text() == "x"


def test_a_disk_that_cannot_be_written(cli, sampling):
    assert "cannot use" in cli(*sampling, "--out", "/proc/run").refusal


@pytest.mark.parametrize("content", ["", "{}", "null", '{"format": 1', "\0"])
def test_a_broken_manifest(cli, sampling, tmp_path, content):
    out = tmp_path / "run"
    cli(*sampling, "--out", out)
    (out / "manifest.json").write_text(content)
    before = run_text(out)
    for command in ([*sampling, "--out", out], ["evaluate", out]):
        assert "manifest.json" in cli(*command).refusal
    assert run_text(out) == before


def test_a_broken_journal_line_is_named(cli, sampling, tmp_path):
    out = tmp_path / "run"
    cli(*sampling, "--out", out)
    first, second, third = lines_of(out)
    for lines, named in {
        (first, "{", third): "line 2: not JSON",
        (first, '{"task_id": "T/1"}', third): "line 2",
        (first, second, first): "line 3: T/0 completion 0 is already in line 1",
        (first, second, third.replace("T/", "U/")): "does not belong to the run",
    }.items():
        (out / "samples.jsonl").write_text("\n".join(lines) + "\n")
        before = run_text(out)
        for command in ([*sampling, "--out", out], ["evaluate", out]):
            assert named in cli(*command).refusal
        assert run_text(out) == before


def test_a_run_that_another_process_writes(cli, sampling, tmp_path):
    from treeshare.runs import RunDirectory, read_run

    out = tmp_path / "run"
    cli(*sampling, "--out", out)
    with RunDirectory(out, read_run(out)[0]):
        assert f"being written by process {os.getpid()}" in cli(*sampling, "--out", out).refusal
        assert cli("evaluate", out).status == 0


def test_evaluate_without_a_run(cli, sampling, tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    assert "expected an existing directory" in cli("evaluate", tmp_path / "nowhere").refusal
    assert "expected an existing directory" in cli("evaluate", tmp_path / "file").refusal
    assert "has no manifest.json" in cli("evaluate", tmp_path / "empty").refusal
    cli(*sampling, "--out", tmp_path / "run")
    (tmp_path / "run" / "samples.jsonl").write_text("")
    assert "has no completions" in cli("evaluate", tmp_path / "run").refusal


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--timeout", "nan"], "--timeout"),
        (["--timeout", "inf"], "--timeout"),
        (["--timeout", 0], "--timeout"),
        (["--workers", 0], "--workers"),
        (["--workers", 10**9], "--workers"),
        (["--json", "nowhere/out.json"], "cannot write nowhere/out.json: nowhere is not a directory"),
        (["--json", "."], "cannot write .: it is a directory"),
        (["--data", "nowhere"], "data: cannot read nowhere"),
        (["--data", "others.jsonl"], "T/2: the task has no such problem"),
    ],
)
def test_evaluate_options(cli, sampling, tmp_path, monkeypatch, problems, arguments, named):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "others.jsonl", problems[:2])
    cli(*sampling, "--out", "run")
    assert named in cli("evaluate", "run", *arguments).refusal
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_a_problem_file_that_has_gone(cli, sampling, tmp_path, data):
    cli(*sampling, "--out", tmp_path / "run")
    data.rename(tmp_path / "moved.jsonl")
    assert "data: cannot read" in cli("evaluate", tmp_path / "run").refusal
    assert cli("evaluate", tmp_path / "run", "--data", tmp_path / "moved.jsonl").status == 0


WORKLOAD = {"problems": [{"prompt_ids": [5, 6], "samples": 2}], "new_tokens": 4}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"problems": []}, "problems: "),
        ({"problems": [{"prompt_ids": [], "samples": 1}]}, "problems.0.prompt_ids: "),
        ({"problems": [{"prompt_ids": [-1], "samples": 1}]}, "problems.0.prompt_ids.0: "),
        ({"problems": [{"prompt_ids": [1.5], "samples": 1}]}, "problems.0.prompt_ids.0: "),
        ({"problems": [{"prompt_ids": ["x"], "samples": 1}]}, "problems.0.prompt_ids.0: "),
        ({"problems": [{"prompt_ids": [1], "samples": 0}]}, "problems.0.samples: "),
        ({"problems": [{"prompt_ids": [1]}]}, "problems.0.samples: "),
        ({"problems": [{"prompt_ids": [999], "samples": 1}]}, "prompts[0]: got 999, expected token ids in"),
        ({"problems": [{"prompt_ids": [10**30], "samples": 1}]}, "expected a flat list of token ids"),
        ({"problems": [{"prompt_ids": [3] * 9999, "samples": 1}]}, "9999 tokens"),
        ({"new_tokens": 0}, "new_tokens: "),
        ({"new_tokens": None}, "new_tokens: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"temperature": -1}, "temperature: "),
        ({"top_p": 7}, "top_p: "),
    ],
)
def test_workloads(cli, text_model, tmp_path, change, named):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(WORKLOAD))
    bad.write_text(json.dumps(WORKLOAD | change))
    result = cli("bench", good, bad, "--model", text_model, "--json", tmp_path / "out.json")
    assert f"workload: {bad}: " in result.refusal
    assert named in result.refusal
    assert result.out == ""
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 99999])
def test_files_that_are_no_workload(cli, text_model, tmp_path, content):
    (tmp_path / "w.json").write_bytes(content)
    for command in ("bench", "tree"):
        assert (
            f"workload: {tmp_path / 'w.json'}: "
            in cli(command, tmp_path / "w.json", "--model", text_model).refusal
        )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--sharing", "some"], "'--sharing': 'some' is not one of 'tree', 'one-level', 'none'"),
        (["--attention", "maybe"], "'--attention': 'maybe' is not one of 'on', 'off'"),
        (["--kv-budget", "1 elephant"], "--kv-budget: got '1 elephant', expected a number of bytes"),
        (["--kv-budget", "1KiB"], "kv_budget_bytes: got 1024, expected at least"),
        (["--json", "/nowhere/x.json"], "/nowhere is not a directory"),
        (["nowhere.json"], "workload: cannot read nowhere.json: No such file"),
        (["."], "workload: cannot read .: Is a directory"),
    ],
)
def test_bench_options(cli, text_model, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.json").write_text(json.dumps(WORKLOAD))
    assert named in cli("bench", "w.json", "--model", text_model, *arguments).refusal


@pytest.mark.parametrize("device", ["", "1,2", "1,2,x", "a,2,1GiB", "-1,2,1GiB", "1,nan,1GiB", "1,2,3,4"])
def test_devices(cli, text_model, tmp_path, device):
    (tmp_path / "w.json").write_text(json.dumps(WORKLOAD))
    arguments = ["tree", tmp_path / "w.json", "--model", text_model, "--plan", "--device", device]
    assert "--device: got " in cli(*arguments).refusal


def test_tree_wants_one_source(cli, text_model, tmp_path):
    (tmp_path / "w.json").write_text(json.dumps(WORKLOAD))
    for arguments in ([], [tmp_path / "w.json", "--task", "humaneval"]):
        assert "tree: got both or neither" in cli("tree", *arguments, "--model", text_model).refusal


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("config.json", b"", "config.json: not JSON"),
        ("config.json", b"{", "config.json: not JSON"),
        ("config.json", b'{"model_type": "no such model"}', "model: cannot load"),
        ("config.json", None, "expected a config.json in it"),
        ("model.safetensors", b"garbage", "model: cannot load"),
        ("model.safetensors", None, "model: cannot load"),
        ("tokenizer.json", b"{", "tokenizer: cannot load"),
    ],
)
def test_broken_model_folders(cli, sampling, text_model, tmp_path, name, content, named):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in text_model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert named in cli(*sampling, "--model", folder, "--out", tmp_path / "run").refusal
    assert not (tmp_path / "run").exists()


def test_a_budget_that_holds_no_prompt_of_a_workload(cli, text_model, tmp_path):
    """The number told is the workload's own need, before anything is printed or run."""
    path = tmp_path / "long.json"
    path.write_text(json.dumps(WORKLOAD | {"problems": [{"prompt_ids": [5] * 300, "samples": 1}]}))
    result = cli("bench", path, "--model", text_model, "--kv-budget", "1KiB")
    needed = int(result.refusal.split("expected at least ")[1].split()[0])
    assert f"workload: {path}: kv_budget_bytes: got 1024" in result.refusal
    assert cli("bench", path, "--model", text_model, "--kv-budget", f"{needed - 1}B").status == 2
    assert cli("bench", path, "--model", text_model, "--kv-budget", f"{needed}B").status == 0
    assert result.out == ""
