"""lm-eval's command and Inspect's model compute the bits of ``treeshare sample``.

Tokens and their log-probabilities, greedy and drawn, for the same prompts, parameters, seed and indices.
"""

from __future__ import annotations

import asyncio
import functools
import json

import pytest

from tests.cli.conftest import cli  # noqa: F401 - a fixture
from tests.cli.text_model import saved_text_model

pytest.importorskip("lm_eval")
pytest.importorskip("inspect_ai")

PROMPTS = ["Question: what is a river?\nAnswer:", "Question: what is a lamp?\nAnswer:"]
KEY, SEED, NUM_TOKENS, N = 77, 5, 16, 3
DRAWN = {"temperature": 0.9, "top_k": 40, "top_p": 0.95}
GREEDY = {"temperature": 0.0}

Bits = dict[tuple[int, int], tuple[list[int], float]]
"""By prompt and index: a completion's tokens, and the sum of their log-probabilities."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = saved_text_model(tmp_path_factory.mktemp("model"))
    tokenizer = json.loads((path / "tokenizer_config.json").read_text())
    tokenizer["chat_template"] = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return path


@pytest.fixture
def seen(monkeypatch):
    """Completions as they leave the engine, whoever has asked; and all problems have one key.

    Each door has keys of its own (a task's id, a document's place, a prompt's tokens): these are inputs.
    """
    from treeshare.engine import requests, token_step
    from treeshare.integrations.lm_eval import model
    from treeshare.runs import sampling_run

    for module in (requests, model, sampling_run):
        monkeypatch.setattr(module, "problem_key", lambda _: KEY)
    found: list[tuple[list[int], token_step.Completion]] = []
    made = token_step.TokenStep._completions

    def completions(sequence, ending):
        ended = made(sequence, ending)
        found.extend((sequence.live.request.prompt_token_ids, completion) for completion in ended)
        return ended

    monkeypatch.setattr(token_step.TokenStep, "_completions", staticmethod(completions))
    return found


def bits(seen, prompts) -> Bits:
    """What was computed since the last call."""
    found = {
        (prompts.index(list(ids)), completion.completion_index): (
            completion.token_ids,
            completion.cumulative_logprob,
        )
        for ids, completion in seen
    }
    assert len(found) == len(seen)
    seen.clear()
    return found


def by_sample(cli, folder, tmp_path, values, n, *more) -> Bits:  # noqa: F811
    """From the file that the command writes."""
    data, out = tmp_path / "questions.jsonl", tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    data.write_text("".join(json.dumps({"question": text, "answer": "x"}) + "\n" for text in PROMPTS))
    options = [word for name, value in values.items() for word in ("--" + name.replace("_", "-"), value)]
    result = cli(
        "sample", "--task", "qa", "--data", data, "--model", folder, "--dtype", "float32", "--out", out,
        "-n", n, "--max-tokens", NUM_TOKENS, "--seed", SEED, "--stop", "\0", "--threads", 1, *options, *more,
    )  # fmt: skip
    assert result.status == 0, result.err
    records = map(json.loads, (out / "samples.jsonl").read_text().splitlines())
    return {
        (int(record["task_id"].removeprefix("qa/")), record["completion_index"]): (
            record["token_ids"],
            record["cumulative_logprob"],
        )
        for record in records
    }


def by_lm_eval(folder, tmp_path, values, n) -> None:
    """The command, with a task of the same prompts."""
    import yaml
    from lm_eval.tasks import TaskManager

    from treeshare.integrations.lm_eval_command import main

    data = tmp_path / "documents.jsonl"
    data.write_text("".join(json.dumps({"question": text}) + "\n" for text in PROMPTS))
    kwargs = {"until": [], "max_gen_toks": NUM_TOKENS, "seed": SEED}
    if values["temperature"]:
        kwargs |= {"do_sample": True, **values}
    task = {
        "task": "same_bits",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "x",
        "repeats": n,
        "generation_kwargs": kwargs,
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "same_bits.yaml").write_text(yaml.safe_dump(task))
    arguments = ["--model", "treeshare", "--tasks", "same_bits", "--include_path", str(tmp_path)]
    arguments += ["--model_args", f"pretrained={folder},dtype=float32"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["treeshare-lm-eval", *arguments])
        patch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip and the processor
        own = functools.partial(TaskManager, include_defaults=False)  # lm-eval's own tasks are thousands
        patch.setattr("lm_eval.tasks.TaskManager", own)
        assert main() == 0


def by_inspect(folder, values, n, *, logprobs=False) -> list[list[float]]:
    """Calls of the provider; what each call's choices say of their tokens' log-probabilities together."""
    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

    model = get_model("treeshare/tiny", memoize=False, model_path=str(folder), dtype="float32")
    config = GenerateConfig(max_tokens=NUM_TOKENS, seed=SEED, num_choices=n, logprobs=logprobs, **values)

    async def ask():
        calls = [model.api.generate([ChatMessageUser(content=text)], [], "none", config) for text in PROMPTS]
        return await asyncio.gather(*calls)

    try:
        answers = asyncio.run(ask())
    finally:
        model.api.close()
    return [
        [sum(at.logprob for at in choice.logprobs.content) for choice in answer.choices if choice.logprobs]
        for answer in answers
    ]


@pytest.mark.parametrize(("values", "n"), [(GREEDY, 1), (DRAWN, N)], ids=["greedy", "drawn"])
def test_the_same_bits(cli, folder, tmp_path, seen, values, n):  # noqa: F811
    from treeshare import LLM

    encode = LLM(folder, dtype="float32").encode
    prompts = [encode(text) for text in PROMPTS]
    written = by_sample(cli, folder, tmp_path, values, n)
    assert written == bits(seen, prompts)
    assert written.keys() == {(place, index) for place in range(len(PROMPTS)) for index in range(n)}
    assert len({tuple(tokens) for tokens, _ in written.values()}) == len(written)  # none is another's
    by_lm_eval(folder, tmp_path, values, n)
    assert bits(seen, prompts) == written
    by_inspect(folder, values, n)
    assert bits(seen, prompts) == written


def test_the_same_log_probabilities(cli, folder, tmp_path, seen):  # noqa: F811
    """Where they are asked for, which is a parameter, too."""
    from treeshare import LLM

    encode = LLM(folder, dtype="float32").encode
    prompts = [encode(text) for text in PROMPTS]
    written = by_sample(cli, folder, tmp_path, DRAWN, N, "--logprobs", 0)
    seen.clear()
    sums = by_inspect(folder, DRAWN, N, logprobs=True)
    assert bits(seen, prompts) == written
    for place, own in enumerate(sums):
        assert own == pytest.approx([written[place, index][1] for index in range(N)], rel=1e-9)
