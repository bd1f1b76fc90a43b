"""The small doors: help with examples, choices, completion, logging, and the same options everywhere."""

from __future__ import annotations

import io
import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import treeshare
from treeshare.cli import options, sampling_options
from treeshare.cli.app import COMMANDS, command_line
from treeshare.cli.examples import EXAMPLES
from treeshare.cli.export import FormatName
from treeshare.cli.outputs import fitted
from treeshare.config import Sharing
from treeshare.evals.exports import Format
from treeshare.tasks.answer_judges import _JUDGES
from treeshare.tree import PromptTree, render_tree
from treeshare.tree.fewshot import SHOT_CHOICES

ROOT = Path(__file__).parents[2]


def run_python(*arguments, cwd=ROOT, **variables):
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def test_each_command_has_examples_and_each_of_them_parses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    group = command_line()
    assert EXAMPLES.keys() == {"", *(command.__name__ for command in COMMANDS)}
    for lines in EXAMPLES.values():
        assert 2 <= len(lines) <= 3
        for line in lines:
            program, name, *words = shlex.split(line)
            assert program == "treeshare"
            assert len(line) < 78, "one line of a terminal"
            if words == ["--help"]:
                continue
            group.commands[name].make_context(name, words).close()


def test_examples_that_are_wrong_are_seen():
    with pytest.raises(Exception, match="No such option"):
        command_line().commands["sample"].make_context("sample", ["--task", "humaneval", "--ot", "run"])


@pytest.mark.parametrize("name", [command.__name__ for command in COMMANDS])
def test_the_short_option_for_help_shows_the_examples(cli, name):
    result = cli(name, "-h")
    assert result.status == 0
    shown = " ".join(result.out.split())
    assert all(example in shown for example in EXAMPLES[name])


def test_help_loads_no_torch():
    code = (
        "import sys; sys.argv = ['treeshare', 'sample', '--help']\nimport treeshare.cli\n"
        "try:\n    treeshare.cli.main()\nexcept SystemExit as end:\n"
        "    print(end.code, sorted({'torch', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout.splitlines()[-1] == "0 []"


def test_python_dash_m():
    done = run_python("-m", "treeshare", "--version")
    assert done.stdout == f"treeshare {treeshare.__version__}\n"


def test_the_package_says_its_version_and_names():
    assert {*treeshare.__all__} <= {*dir(treeshare)}
    assert "__version__" in dir(treeshare)
    assert "importlib" not in dir(treeshare)
    code = (
        "from importlib import metadata\ndef none(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = none\nimport treeshare; print(treeshare.__version__)"
    )
    assert run_python("-c", code).stdout == "0.1.0\n" or treeshare.__version__ != "0.1.0"


def test_choices_are_those_of_the_library():
    def choices(annotation):
        return {word for part in get_args(annotation) for word in get_args(part) or [part] if word}

    assert set(get_args(FormatName)) == {*get_args(Format), "inspect"}
    assert choices(get_args(options.Judge)[0]) - {type(None)} == {*_JUDGES}
    assert get_args(get_args(options.ShotChoice)[0]) == SHOT_CHOICES
    assert get_args(options.Sharing)[0] is Sharing


@pytest.mark.parametrize(
    ("arguments", "choices"),
    [
        (["--dtype", "float8"], "auto bfloat16 float32"),
        (["--sharing", "forest"], "tree one-level none"),
        (["--judge", "good"], "exact number math regex choice"),
        (["--shot-choice", "best"], "fixed random nearest nearest-shared"),
        (["--quantization", "int4"], "int8"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_read(cli, arguments, choices):
    refusal = cli("sample", "--task", "humaneval", "--data", "nowhere", "--out", "run", *arguments).refusal
    assert arguments[0] in refusal
    assert all(f"'{choice}'" in refusal for choice in choices.split())


def test_the_model_may_be_named_as_everywhere(cli, text_model):
    named, given = cli("models", "--model", text_model), cli("models", text_model)
    assert (named.status, named.out) == (0, given.out)
    assert "got MODEL and --model" in cli("models", text_model, "--model", text_model).refusal
    assert "got MODEL and --model" in cli("serve", "a", "--model", "b").refusal
    assert "MODEL: got none" in cli("serve").refusal


NEW_OPTIONS = {
    "--min-p": ("0.1", "min_p", 0.1),
    "--presence-penalty": ("0.5", "presence_penalty", 0.5),
    "--frequency-penalty": ("-0.5", "frequency_penalty", -0.5),
    "--repetition-penalty": ("1.2", "repetition_penalty", 1.2),
    "--min-tokens": ("3", "min_tokens", 3),
    "--stop-token-id": ("7", "stop_token_ids", [7]),
}


def test_how_completions_are_drawn_is_recorded_and_kept(cli, sampling, tmp_path):
    given = [word for option, (text, *_) in NEW_OPTIONS.items() for word in (option, text)]
    given += ["--sharing", "one-level", "--device", "cpu"]
    out = tmp_path / "run"
    assert cli(*sampling, *given, "--out", out).status == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["sharing"], manifest["device"]) == ("one-level", "cpu")
    for _, name, value in NEW_OPTIONS.values():
        assert manifest["sampling"][name] == value
    assert all(len(record["token_ids"]) >= 3 for record in _records(out))
    assert "nothing to do" in cli(*sampling, *given, "--out", out).out
    refusal = cli(*sampling, "--out", out).refusal
    for name in ("sharing", *(name for _, name, _ in NEW_OPTIONS.values())):
        assert f"{name}: run has " in refusal


def _records(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_a_device_that_is_not_there(cli, sampling, tmp_path):
    assert "device: got 'cuda:99'" in cli(*sampling, "--device", "cuda:99", "--out", tmp_path / "run").refusal
    refusal = cli(*sampling, "--device", "cuda", "--ray", "--out", tmp_path / "run").refusal
    assert "--device: got cuda with --ray" in refusal


def test_evaluate_prints_the_k_that_are_asked_for(cli, sampling, tmp_path):
    out = tmp_path / "run"
    assert cli(*sampling, "-n", 3, "--out", out).status == 0
    result = cli("evaluate", out, "-k", "3,1,9")
    assert result.status == 0
    lines = [line.split("|")[1].strip() for line in result.out.splitlines() if "% |" in line]
    assert lines == ["1", "3"]
    assert "-k: 9: left out" in result.err
    assert "-k: got '1,x'" in cli("evaluate", out, "-k", "1,x").refusal
    assert "-k: got '0'" in cli("evaluate", out, "-k", "0").refusal


def test_the_engine_logs_where_it_is_wanted(cli, sampling, tmp_path):
    quiet = cli(*sampling, "--out", tmp_path / "quiet")
    assert "treeshare.engine" not in quiet.err
    for place in ("front", "back"):
        words = ["--verbose", *sampling] if place == "front" else [*sampling, "--verbose"]
        result = cli(*words, "--out", tmp_path / place)
        assert result.status == 0
        loaded, run = (line for line in result.err.splitlines() if " treeshare.engine: " in line)
        assert "kernels " in loaded
        assert "KV budget " in loaded
        assert " preemptions" in run
    assert not logging.getLogger("treeshare").handlers


COMPLETION = {"_TREESHARE_COMPLETE": "complete_bash"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("treeshare sa", ["sample"]),
        ("treeshare sample --min-t", ["--min-tokens"]),
        ("treeshare sample --dtype b", ["bfloat16"]),
    ],
)
def test_bash_completes(words, expected):
    variables = COMPLETION | {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = run_python("-m", "treeshare", **variables)
    assert (done.returncode, done.stdout.split()) == (0, expected), done.stderr


def test_completion_is_installed_for_bash(tmp_path):
    code = (
        "import sys, shellingham; shellingham.detect_shell = lambda *_: ('bash', '/bin/bash')\n"
        "sys.argv = ['treeshare', '--install-completion']\nimport treeshare.cli; treeshare.cli.main()"
    )
    done = run_python("-c", code, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "bash completion installed" in done.stdout
    (script,) = (tmp_path / ".bash_completions").iterdir()
    assert "_TREESHARE_COMPLETE=complete_bash" in script.read_text()


class _Terminal:
    def isatty(self):
        return True


def test_lines_fit_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    text = " ".join(["word"] * 30)
    assert all(len(line) <= 40 for line in fitted(text, _Terminal()).splitlines())
    assert fitted(text, io.StringIO()) == text
    tree = PromptTree.from_prompts([[5, 6, 7] * 20 + [i] * 30 for i in range(40)])
    wide = render_tree(tree, 3, decode=lambda ids: "字" * len(ids))
    narrow = render_tree(tree, 3, decode=lambda ids: "字" * len(ids), max_width=60)
    assert len(wide.splitlines()) == len(narrow.splitlines())
    columns = [len(line) + line.count("字") for line in narrow.splitlines()[:-3]]
    assert max(columns) <= 60
    assert max(len(line) + line.count("字") for line in wide.splitlines()) > 60


def test_the_library_loads_in_silence_and_leaves_the_settings(text_model, capfd):
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_progress_bar()
    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    treeshare.LLM(str(text_model), threads=1)
    assert capfd.readouterr().err == ""
    after = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    assert before == after
    bar = transformers_logging.tqdm(total=1)
    assert not bar.disable
    bar.close()


def test_options_of_drawing_are_all_used():
    import inspect

    from treeshare.cli.sample import sample

    used = {str(parameter.annotation) for parameter in inspect.signature(sample).parameters.values()}
    own = [name for name in vars(sampling_options) if name[0].isupper() and name not in ("Annotated", "Any")]
    known = {str(getattr(sampling_options, name)) for name in own if name not in ("Path", "ConfigError")}
    assert known <= used
