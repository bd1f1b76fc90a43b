"""``treeshare sample``: the files' contract, resuming, extending, refusing."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections import Counter

import pytest

from tests.cli.conftest import lines_of, write_lines
from tests.cli.text_model import MAX_MODEL_LEN
from treeshare.evals import CheckResult
from treeshare.evals.sandbox import Verdict

CONTRACT = {"task_id", "completion_index", "completion", "token_ids", "finish_reason", "cumulative_logprob"}


def test_a_run_has_its_files_and_every_completion_once(cli, sampling, tmp_path):
    result = cli(*sampling, "-n", 4, "--out", tmp_path / "a" / "run")
    assert result.status == 0
    assert "├─ 7 tokens [0, 7)  2 prompts, 8 completions  'def f(x'" in result.out
    assert "12 completions" in result.out
    assert f"treeshare evaluate {tmp_path / 'a' / 'run'}" in result.out
    records = [json.loads(line) for line in lines_of(tmp_path / "a" / "run")]
    assert {(r["task_id"], r["completion_index"]) for r in records} == {
        (f"T/{problem}", index) for problem in range(3) for index in range(4)
    }
    assert len(records) == 12
    for record in records:
        assert record.keys() >= CONTRACT
        assert record["finish_reason"] in ("stop", "length")
        assert 1 <= len(record["token_ids"]) <= 12
        assert record["finish_reason"] == "stop" or len(record["token_ids"]) == 12
        assert record["cumulative_logprob"] < 0
    manifest = json.loads((tmp_path / "a" / "run" / "manifest.json").read_text())
    assert (manifest["task"], manifest["n"], manifest["seed"]) == ("humaneval", 4, 0)
    assert manifest["sampling"]["max_tokens"] == 12
    assert manifest["task_ids"] == ["T/0", "T/1", "T/2"]
    assert manifest["versions"].keys() >= {"python", "treeshare", "torch", "transformers"}


def test_progress_says_tokens_per_second_on_stderr_only(cli, sampling, tmp_path):
    result = cli(*sampling, "-n", 2, "--out", tmp_path / "run")
    assert "completions: 6 of 6, " in result.err
    assert "tokens/s, 0:0" in result.err
    assert "6 of 6" not in result.out


def test_the_same_command_resumes_and_the_file_is_that_of_an_undisturbed_run(cli, sampling, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli(*sampling, "-n", 4, "--out", whole).status == 0
    assert cli(*sampling, "-n", 4, "--out", cut).status == 0
    kept = lines_of(cut)[3:8]
    (cut / "samples.jsonl").write_text("\n".join(kept) + '\n{"task_id": "T/')
    result = cli(*sampling, "-n", 4, "--out", cut)
    assert result.status == 0
    assert "removed an incomplete last line of 15 bytes" in result.err
    assert "resuming: 5 completions already exist" in result.err
    assert "completions: 7 of 7" in result.err
    assert lines_of(cut)[:5] == kept
    assert sorted(lines_of(cut)) == sorted(lines_of(whole))
    again = cli(*sampling, "-n", 4, "--out", cut)
    assert again.status == 0
    assert "nothing to do" in again.out
    assert sorted(lines_of(cut)) == sorted(lines_of(whole))


def test_a_larger_n_extends_and_a_smaller_one_changes_nothing(cli, sampling, tmp_path):
    out = tmp_path / "run"
    cli(*sampling, "-n", 2, "--out", out)
    first = lines_of(out)
    cli(*sampling, "-n", 5, "--out", out)
    assert lines_of(out)[:6] == first
    cli(*sampling, "--n", 5, "--out", tmp_path / "at once")
    assert sorted(lines_of(out)) == sorted(lines_of(tmp_path / "at once"))
    before = lines_of(out)
    result = cli(*sampling, "-n", 3, "--out", out)
    assert result.status == 0
    assert "the run keeps its n = 5" in result.err
    assert lines_of(out) == before
    assert json.loads((out / "manifest.json").read_text())["n"] == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (["--temperature", 0.7], "temperature: run has 0.8, command has 0.7"),
        (["--top-p", 0.9], "top_p: run has 1.0, command has 0.9"),
        (["--top-k", 5], "top_k: run has 0, command has 5"),
        (["--max-tokens", 13], "max_tokens: run has 12, command has 13"),
        (["--stop", "x"], "stop: run has "),
        (["--seed", 1], "seed: run has 0, command has 1"),
        (["--dtype", "bfloat16"], "dtype: run has 'float32', command has 'bfloat16'"),
        (["--limit", 2], "task_ids: run has 3 problems, command has 2"),
    ],
)
def test_a_changed_parameter_is_refused_by_name(cli, sampling, tmp_path, changes, named):
    out = tmp_path / "run"
    cli(*sampling, "-n", 2, "--out", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert named in cli(*sampling, "-n", 2, "--out", out, *changes).refusal
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert after == before


def test_changed_tests_are_refused(cli, sampling, tmp_path, problems):
    out = tmp_path / "run"
    cli(*sampling, "-n", 1, "--out", out)
    write_lines(tmp_path / "problems.jsonl", [problem | {"test": "1"} for problem in problems])
    assert "problems_sha256: run has " in cli(*sampling, "-n", 1, "--out", out).refusal
    assert "has changed since the run" in cli("evaluate", out).refusal


def test_seeds_and_options_reach_the_sampler(cli, sampling, tmp_path):
    completions = {}
    for name, changes in {"a": [], "b": ["--seed", 1], "c": ["--temperature", 0]}.items():
        cli(*sampling, "-n", 3, "--out", tmp_path / name, *changes)
        records = [json.loads(line) for line in lines_of(tmp_path / name)]
        completions[name] = sorted((r["task_id"], tuple(r["token_ids"])) for r in records)
    assert completions["a"] != completions["b"]
    assert len(set(completions["c"])) == 3


def test_stop_strings_replace_the_tasks(cli, sampling, tmp_path):
    letters = [argument for letter in "aeiou0123456789" for argument in ("--stop", letter)]
    cli(*sampling, "-n", 8, "--max-tokens", 60, "--out", tmp_path / "run", *letters)
    records = [json.loads(line) for line in lines_of(tmp_path / "run")]
    stopped = [r for r in records if r["stop_reason"] is not None]
    assert stopped
    assert all(r["finish_reason"] == "stop" for r in stopped)
    assert all(not set(r["completion"]) & set("aeiou0123456789") for r in records)


def test_structured_runs_resume_and_extend(cli, sampling, tmp_path):
    """Grammar, bias and bad words are of the run: kept in its manifest, refused when they change."""
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    options = ["--regex", "[ab]{2,8}c", "--logit-bias", '{"67": 1.5}', "--bad-word", "aba"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli(*sampling, *options, "-n", 4, "--out", whole).status == 0
    assert cli(*sampling, *options, "-n", 2, "--out", cut).status == 0
    (cut / "samples.jsonl").write_text("\n".join(lines_of(cut)[2:5]) + "\n")
    assert cli(*sampling, *options, "-n", 4, "--out", cut).status == 0
    assert sorted(lines_of(cut)) == sorted(lines_of(whole))
    for record in map(json.loads, lines_of(whole)):
        assert re.fullmatch("[ab]{2,8}c", record["completion"])
        assert "aba" not in record["completion"]
        assert (record["finish_reason"], record["stop_reason"]) == ("stop", None)
    for changes, named in (
        (["--regex", "[ab]*"], "structured_outputs: run has {'regex': '[ab]{2,8}c'}"),
        (["--logit-bias", "{}"], "logit_bias: run has {'67': 1.5}, command has None"),
        (["--bad-word", "b"], "bad_words: run has ['aba'], command has ['aba', 'b']"),
        (["--allowed-token-id", 5], "allowed_token_ids: run has None, command has [5]"),
    ):
        assert named in cli(*sampling, *options, *changes, "-n", 4, "--out", cut).refusal


def test_choices_and_schemas(cli, sampling, tmp_path):
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 2}')
    for name, options in (("a", ["--json-schema", schema]), ("b", ["--choice", "ab", "--choice", "abc"])):
        cli(*sampling, *options, "--max-tokens", 90, "-n", 2, "--out", tmp_path / name)
        texts = [json.loads(line)["completion"] for line in lines_of(tmp_path / name)]
        assert all(
            text in ("ab", "abc") if name == "b" else set(json.loads(text)) <= {1, 2} for text in texts
        )


def test_a_model_without_a_tokenizer_is_refused_for_text(cli, data, model_dir, tmp_path):
    arguments = ["--task", "humaneval", "--data", data, "--model", model_dir("llama")]
    for command in (["sample", "--out", tmp_path / "run"], ["tree"], ["verify"]):
        assert "--model: it has no tokenizer" in cli(*command, *arguments).refusal
    assert not (tmp_path / "run").exists()


def test_prompts_that_do_not_fit_are_refused_by_name(cli, sampling, tmp_path, problems):
    for prompt, length in (("x" * MAX_MODEL_LEN, MAX_MODEL_LEN), ("", 0)):
        write_lines(tmp_path / "problems.jsonl", [*problems[:2], problems[2] | {"prompt": prompt}])
        refusal = cli(*sampling, "-n", 2, "--out", tmp_path / "run").refusal
        assert f"the prompt of T/2 has {length} tokens, expected at least 1 and fewer than" in refusal
        assert not (tmp_path / "run").exists()


def test_max_tokens_beyond_the_model_are_what_fits(cli, sampling, tmp_path):
    result = cli(*sampling, "-n", 1, "--limit", 1, "--max-tokens", 10**12, "--out", tmp_path / "run")
    assert result.status == 0
    (record,) = map(json.loads, lines_of(tmp_path / "run"))
    assert 1 <= len(record["token_ids"]) <= MAX_MODEL_LEN - 20


def test_a_clock_that_jumps_changes_nothing(cli, sampling, tmp_path, monkeypatch):
    cli(*sampling, "-n", 2, "--out", tmp_path / "steady")
    jumps = itertools.cycle([1e9, 2e9, 1e6])
    monkeypatch.setattr(time, "time", lambda: next(jumps))
    assert cli(*sampling, "-n", 1, "--out", tmp_path / "run").status == 0
    result = cli(*sampling, "-n", 2, "--out", tmp_path / "run")
    assert result.status == 0
    assert sorted(lines_of(tmp_path / "run")) == sorted(lines_of(tmp_path / "steady"))
    assert re.search(r"completions: 3 of 3, \d+ tokens/s, 0:\d\d$", result.err.strip())
    assert re.search(r"3 completions, \d+ tokens in \d\.\d s", result.out)


CHAT_TASK = """
from treeshare.evals import CheckResult, Problem, Task
from treeshare.evals.sandbox import Verdict

class Marked(Task):
    name, stop, max_tokens, needs_sandbox = "marked", ("a",), 4, False

    def load(self, data):
        return [Problem(task_id="m/0", prompt="Say it.")]

    def from_chat(self, problem, reply):
        return f"<code>{reply}"

    def check(self, problem, completion, sandbox, limits):
        once = completion.startswith("<code>") and not completion.startswith("<code><code>")
        return CheckResult(verdict=Verdict.PASSED if once else Verdict.WRONG_ANSWER, detail="")
"""


def test_a_chat_reply_is_looked_into_once_and_kept(cli, text_model, tmp_path):
    model = tmp_path / "chat"
    shutil.copytree(text_model, model)
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}?")
    (tmp_path / "marked.py").write_text(CHAT_TASK)
    task, out = f"{tmp_path / 'marked.py'}:Marked", tmp_path / "run"
    sampling = ["sample", "--task", task, "--model", model, "--threads", 1, "--max-tokens", 6, "-n", 3]
    assert cli(*sampling, "--chat", "--out", out).status == 0
    for line in map(json.loads, lines_of(out)):
        assert line["completion"] == "<code>" + line["reply"]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["sampling"]["stop"], manifest["prompting"]["chat"]) == ([], True)
    assert "3 completions of 1 problem, 3 right" in cli("evaluate", out, "--task", task).out


def test_a_reply_goes_on_in_the_reasoning_that_its_prompt_opened(cli, text_model, tmp_path):
    model = tmp_path / "chat"
    shutil.copytree(text_model, model)
    (tmp_path / "marked.py").write_text(CHAT_TASK)
    task = f"{tmp_path / 'marked.py'}:Marked"
    sampling = ["sample", "--task", task, "--model", model, "--threads", 1, "--max-tokens", 6, "--chat"]
    for end, front in (("<think>", "<code><think>"), ("<think></think>", "<code>")):
        (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}" + end)
        out = tmp_path / str(len(end))
        assert cli(*sampling, "--out", out).status == 0
        (line,) = map(json.loads, lines_of(out))
        assert line["completion"] == front + line["reply"]


def test_what_the_chat_template_is_given_is_the_runs(cli, text_model, tmp_path):
    """Recorded in the manifest; a run is not gone on with by another, nor extended."""
    model = tmp_path / "chat"
    shutil.copytree(text_model, model)
    template = "{{ messages[0]['content'] }}{% if enable_thinking is false %} now{% endif %}?"
    (model / "chat_template.jinja").write_text(template)
    (tmp_path / "marked.py").write_text(CHAT_TASK)
    task = ["--task", f"{tmp_path / 'marked.py'}:Marked", "--model", model, "--chat"]
    out = ["--threads", 1, "--max-tokens", 6, "--out", tmp_path / "run"]
    quiet = ["--chat-template-kwargs", '{"enable_thinking": false}']
    assert cli("sample", *task, *out, *quiet).status == 0
    prompting = json.loads((tmp_path / "run" / "manifest.json").read_text())["prompting"]
    assert prompting["chat_template_kwargs"] == '{"enable_thinking": false}'
    assert cli("sample", *task, *out, *quiet, "-n", 2).status == 0
    for other in ([], ["--chat-template-kwargs", '{"enable_thinking": true}']):
        assert "chat_template_kwargs: run has" in cli("sample", *task, *out, *other, "-n", 3).refusal
    assert "now?" in cli("tree", *task, *quiet).out
    assert "now?" not in cli("tree", *task).out
    for text, message in (
        ("off", "--chat-template-kwargs: got 'off', expected a JSON object"),
        ("[1]", "expected a JSON object"),
        ('{"tokenize": true}', "chat_template_kwargs: got 'tokenize', expected variables of the template"),
    ):
        assert message in cli("sample", *task, *out, "--chat-template-kwargs", text).refusal
    assert "without a chat template" in cli("sample", *task[:-1], *out, *quiet).refusal
    (model / "chat_template.jinja").write_text("{{ raise_exception('not\nyou') }}")
    assert "the model's chat template rejects them: not you" in cli("sample", *task, *out).refusal


def test_a_tight_budget_changes_no_token(cli, sampling, tmp_path):
    """Few of the rows fit at a time; too few bytes are refused in one line."""
    for name, budget in (("free", []), ("tight", ["--kv-budget", "200KiB"])):
        assert cli(*sampling, "-n", 6, *budget, "--out", tmp_path / name).status == 0
    assert sorted(lines_of(tmp_path / "tight")) == sorted(lines_of(tmp_path / "free"))
    for budget, message in (
        ("1KiB", "kv_budget_bytes: got 1024, expected at least"),
        ("much", "--kv-budget: got"),
    ):
        assert message in cli(*sampling, "--kv-budget", budget, "--out", tmp_path / "none").refusal


def test_a_success_ends_a_problem_and_the_journal_says_so(cli, sampling, tmp_path, monkeypatch):
    def check(task, problem, completion, sandbox, limits):
        verdict = Verdict.WRONG_ANSWER if problem.task_id == "T/1" else Verdict.PASSED
        return CheckResult(verdict=verdict, detail="")

    monkeypatch.setattr("treeshare.tasks.humaneval.HumanEval.check", check)
    rule = ["--stop-problem-after", "first-success"]
    out = tmp_path / "run"
    assert cli(*sampling, "-n", 4, "--max-num-seqs", 1, *rule, "--out", out).status == 0
    records = [json.loads(line) for line in lines_of(out)]
    assert Counter(r["task_id"] for r in records) == {"T/0": 1, "T/1": 4, "T/2": 1}
    assert {(r["task_id"], r["ended_problem"]) for r in records if "ended_problem" in r} == {
        ("T/0", "first success"),
        ("T/2", "first success"),
    }
    assert "nothing to do" in cli(*sampling, "-n", 4, "--max-num-seqs", 1, *rule, "--out", out).out


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("soon", "--stop-problem-after: got 'soon', expected first-success, or margin=N"),
        ("margin=0", "--stop-problem-after: got 'margin=0', expected"),
        ("margin=2", "--stop-problem-after: humaneval has no answers to count; use first-success"),
    ],
)
def test_rules_that_cannot_be_followed(cli, sampling, tmp_path, rule, message):
    assert message in cli(*sampling, "--stop-problem-after", rule, "--out", tmp_path / "run").refusal
    assert not (tmp_path / "run").exists()
