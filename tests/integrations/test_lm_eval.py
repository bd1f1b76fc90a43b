"""lm-eval on our model gives what it gives on its own ``hf`` model, in float32, from local files."""

from __future__ import annotations

import functools
import json
import re

import pytest

from tests.cli.text_model import saved_text_model
from treeshare.errors import ConfigError

lm_eval = pytest.importorskip("lm_eval")

WORDS = ("stone", "river", "lamp", "green", "seven", "bird", "window", "paper", "salt", "iron")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Task configurations by name, on local JSON lines."""
    folder = tmp_path_factory.mktemp("tasks")
    questions = [
        {
            "question": f"Which is a {WORDS[i]} beside the {WORDS[(i * 3 + 1) % 10]}?",
            "choices": [" ".join(WORDS[(i + j + k) % 10] for k in range(j + 1)) for j in range(4)],
            "answer": i % 4,
        }
        for i in range(5)
    ]
    sums = [{"question": f"{WORDS[i]} {i} + {i * 7}?", "answer": f"#### {i * 8}"} for i in range(5)]
    texts = [{"text": " ".join(WORDS[(i * k) % 10] for k in range(1, 60 * i + 3))} for i in range(3)]
    common = {"test_split": "test", "dataset_path": "json"}

    def data(name, rows):
        return {
            "dataset_kwargs": {
                "data_files": {"test": lines(folder / f"{name}.jsonl", rows)},
                "cache_dir": str(folder / "cache"),
            }
        }

    found = [
        {
            "task": "choices",
            **common,
            **data("choices", questions),
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "fewshot_split": "test",
            "num_fewshot": 1,
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        },
        {
            "task": "sums",
            **common,
            **data("sums", sums),
            "output_type": "generate_until",
            "doc_to_text": "Q: {{question}}\nA:",
            "doc_to_target": "{{answer}}",
            "generation_kwargs": {"until": ["\n", "7"], "max_gen_toks": 24, "do_sample": False},
            "filter_list": [
                {
                    "name": "number",
                    "filter": [
                        {"function": "regex", "regex_pattern": "([0-9a-z])"},
                        {"function": "take_first"},
                    ],
                }
            ],
            "metric_list": [{"metric": "exact_match", "regexes_to_ignore": ["#### "]}],
        },
        {
            "task": "texts",
            **common,
            **data("texts", texts),
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
    ]
    found.append(
        {
            **found[1],
            "task": "majority",
            "repeats": 4,
            "filter_list": [
                {
                    "name": "vote",
                    "filter": [
                        {"function": "regex", "regex_pattern": "([0-9a-z])"},
                        {"function": "majority_vote"},
                        {"function": "take_first"},
                    ],
                }
            ],
        }
    )
    return {row["task"]: row for row in found}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def ours(folder):
    from treeshare.integrations.lm_eval import TreeshareLM

    return TreeshareLM(pretrained=folder, dtype="float32")


@pytest.fixture(scope="module")
def hf(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1)


@pytest.fixture(autouse=True)
def few_tasks(monkeypatch):
    """Without the index of lm-eval's own thirteen thousand task files, which takes seconds to read."""
    from lm_eval.tasks import TaskManager

    init = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    monkeypatch.setattr(TaskManager, "__init__", init)


def evaluate(model, tasks):
    return lm_eval.simple_evaluate(model=model, tasks=list(tasks), bootstrap_iters=0)


def assert_same(ours, theirs, rounding=0.0):
    """The same metrics and answers; log-probabilities to float32's rounding, at least ``rounding``."""
    assert ours["results"].keys() == theirs["results"].keys()
    for task, metrics in theirs["results"].items():
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        assert numbers
        assert {key: ours["results"][task][key] for key in numbers} == pytest.approx(numbers, rel=1e-5)
        for row, other in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert row["arguments"] == other["arguments"]
            assert len(row["resps"]) == len(other["resps"])
            for mine, their in zip(row["resps"], other["resps"], strict=True):
                assert_same_answers(mine, their, rounding)


def assert_same_answers(mine, theirs, rounding=0.0):
    for answer, expected in zip(mine, theirs, strict=True):
        if isinstance(expected, tuple):
            assert answer[0] == pytest.approx(expected[0], rel=1e-5, abs=rounding)
            assert answer[1] == expected[1]
        else:
            assert answer == (expected if isinstance(expected, str) else pytest.approx(expected, rel=1e-5))


def test_results_are_those_of_hf(ours, hf, tasks):
    got, expected = (evaluate(model, tasks.values()) for model in (ours, hf))
    assert_same(got, expected)
    answers = [sample["resps"][0][0] for sample in got["samples"]["sums"]]
    assert len(set(answers)) > 3
    assert not any("7" in answer or "\n" in answer for answer in answers)
    assert [len(sample["resps"][0]) for sample in got["samples"]["majority"]] == [4] * 5


@pytest.mark.slow
def test_results_of_a_real_model_are_those_of_hf(tasks):
    from lm_eval.models.huggingface import HFLM

    from treeshare.integrations.lm_eval import TreeshareLM
    from treeshare.models.loading import _resolve

    ours = TreeshareLM(pretrained="smollm2-135m", dtype="float32")
    hf = HFLM(pretrained=_resolve("smollm2-135m", "float32"), dtype="float32", device="cpu", batch_size=4)
    got, expected = (evaluate(model, tasks.values()) for model in (ours, hf))
    assert_same(got, expected)
    assert 0 < got["results"]["texts"]["word_perplexity,none"] < 1e6


def instance(context, gen_kwargs, doc_id=0, task="t", idx=0):
    from lm_eval.api.instance import Instance

    return Instance("generate_until", {}, (context, gen_kwargs), idx, (task, doc_id, 1))


SAMPLED = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12, "until": ["\n"]}


def test_samples_can_be_replayed(ours):
    """An answer depends on seed, task, document and copy, not on the other requests."""
    first, other = instance("Say:", SAMPLED), instance("Say:", SAMPLED, doc_id=1)
    together = ours.generate_until([first] * 4 + [other] * 2, disable_tqdm=True)
    assert len(set(together)) == 6
    assert ours.generate_until([other, other], disable_tqdm=True) == together[4:]
    assert ours.generate_until([first], disable_tqdm=True) == together[:1]
    assert ours.generate_until([instance("Say:", {**SAMPLED, "seed": 5})], disable_tqdm=True) != together[:1]
    greedy = ours.generate_until([instance("Say:", {"max_gen_toks": 12})] * 3, disable_tqdm=True)
    assert len(set(greedy)) == 1
    assert ours.llm.stats.num_rows == 12 - 1


def test_defaults_of_sampling_are_those_of_hf(ours, monkeypatch):
    """Neither the task nor the model says anything of top-k: transformers takes 50."""
    assert ours._generation(SAMPLED, 1).params.top_k == 50
    assert ours._generation({**SAMPLED, "top_k": 3, "top_p": 0.5}, 1).params.top_k == 3
    monkeypatch.setattr(ours.llm.model.generation_config, "repetition_penalty", 1.5)
    monkeypatch.setattr(ours.llm.model.generation_config, "top_k", 7)
    assert ours._generation(SAMPLED, 1).params.top_k == 7
    greedy = ours._generation({"until": "x", "temperature": 0.7, "do_sample": False}, 2).params
    assert (greedy.temperature, greedy.top_k, greedy.repetition_penalty, greedy.n) == (0, 0, 1.5, 2)
    assert greedy.max_tokens == 256


def test_greedy_with_the_models_penalty_is_that_of_hf(ours, hf, monkeypatch):
    requests = [instance(text, {"until": ["\n"], "max_gen_toks": 40}) for text in ("Say:", "Count 1 2 3")]
    plain = ours.generate_until(requests, disable_tqdm=True)
    for model in (ours.llm.model, hf.model):
        monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.8)
    assert ours.generate_until(requests, disable_tqdm=True) != plain
    assert ours.generate_until(requests, disable_tqdm=True) == hf.generate_until(requests, disable_tqdm=True)


def test_long_texts_are_cut_as_by_hf(ours, hf):
    """Contexts on the left; a text is scored in windows."""
    long = " ".join(WORDS[i % 7] for i in range(150))
    pairs = [Pair(("a " + long, " stone river")), Pair(("", " stone")), Pair(("", long[:400]))]
    got, expected = (model.loglikelihood(pairs, disable_tqdm=True) for model in (ours, hf))
    assert_same_answers(got, expected)
    requests = [instance(long, {"until": [], "max_gen_toks": 9})]
    assert ours.generate_until(requests, True) == hf.generate_until(requests, True)
    texts = [Pair((long,)), Pair(("",)), Pair((long[:30],))]
    got, expected = (model.loglikelihood_rolling(texts, True) for model in (ours, hf))
    assert got == pytest.approx(expected, rel=1e-5)


class Pair:
    """A request with these arguments."""

    def __init__(self, args):
        self.args = args
        self.task_name = "t"


def test_answers_go_to_the_cache(ours):
    kept = {}

    class Hook:
        def add_partial(self, attribute, args, answer):
            kept[attribute, json.dumps(args)] = answer

    ours.set_cache_hook(Hook())
    requests = [Pair(("a", " b")), Pair(("a", " c"))]
    answers = ours.loglikelihood(requests, disable_tqdm=True)
    (total,) = ours.loglikelihood_rolling([Pair(("a b",))], disable_tqdm=True)
    (text,) = ours.generate_until([instance("Say:", SAMPLED)], disable_tqdm=True)
    assert kept == {
        ("loglikelihood", '["a", " b"]'): answers[0],
        ("loglikelihood", '["a", " c"]'): answers[1],
        ("loglikelihood_rolling", '["a b"]'): total,
        ("generate_until", json.dumps(["Say:", SAMPLED])): text,
    }


def test_chat_templates(ours, hf, monkeypatch):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    with pytest.raises(ConfigError, match=r"chat_template: .* has none"):
        ours.apply_chat_template(messages)
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    for model in (ours, hf):
        monkeypatch.setattr(model.tokenizer, "chat_template", template)
    assert ours.apply_chat_template(messages) == "<user>Hello<assistant>"
    asked = [*messages[1:], {"role": "assistant", "content": "Well"}]
    for model in (ours, hf):
        assert model.apply_chat_template(asked, add_generation_prompt=False) == "<user>Hello<assistant>Well"
        assert model.chat_template(True) == template
    assert ours.tokenizer_name == hf.tokenizer_name


def test_arguments(folder):
    from treeshare.integrations.lm_eval import TreeshareLM

    model = TreeshareLM.create_from_arg_string(
        f"model={folder},dtype=float32,kv_budget_bytes=4000000,max_length=64,max_gen_toks=5,seed=3,"
        "add_bos_token=True,prefix_token_id=1",
        {"batch_size": "auto:4", "max_batch_size": None, "device": "cpu"},
    )
    assert (model.llm.seed, model.llm.kv_budget_bytes, model.max_length) == (3, 4_000_000, 64)
    assert (model.prefix_token_id, model.eot_token_id) == (1, 1)
    assert len(model.generate_until([instance("x" * 100, {"until": []})], True)) == 1
    assert model.llm.stats.logical_tokens == 64 - 5


@pytest.mark.parametrize(
    ("device", "own_choice", "expected"),
    [
        (None, "cpu", "auto"),
        ("cpu", "cuda", "cpu"),
        ("cuda:1", "cuda", "cuda:1"),
        ("cuda:0", "cuda", "cuda:0"),
        ("cuda:0", "cpu", "cpu"),
    ],
)
def test_the_device_is_handed_on(monkeypatch, device, own_choice, expected):
    """lm-eval's command line says ``cuda:0`` when its user says nothing."""
    from treeshare.integrations.lm_eval import TreeshareLM, model
    from treeshare.integrations.lm_eval import device as device_module

    class HandedOnError(Exception):
        pass

    def recording(name, **options):
        raise HandedOnError(name, options)

    monkeypatch.setattr(device_module, "resolve_device", {"auto": own_choice}.__getitem__)
    monkeypatch.setattr(model, "LLM", recording)
    with pytest.raises(HandedOnError) as caught:
        TreeshareLM.create_from_arg_string("pretrained=x,seed=3", {"device": device})
    assert caught.value.args == ("x", {"device": expected, "seed": 3})


def test_what_tokens_may_come(ours):
    """As for lm-eval's ``vllm`` model: the names of ``SamplingParams``."""
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    options = {"structured_outputs": {"regex": "[abc]{6}"}, "bad_words": ["c"], "logit_bias": {"5": -1}}
    (text,) = ours.generate_until(
        [instance("Say:", {"until": [], "max_gen_toks": 20, **options})], disable_tqdm=True
    )
    assert re.fullmatch("[ab]{6}", text)


@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"num_beams": 4}, "generation_kwargs: got 'num_beams', expected of until, max_gen_toks"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs: regex: unclosed group"),
        ({"allowed_token_ids": []}, "allowed_token_ids: got []"),
        ({"do_sample": True}, "temperature: got 0.0, expected more than 0 with do_sample: true"),
        ({"max_gen_toks": 512}, "max_gen_toks: got 512, expected less than max_length, 512"),
    ],
)
def test_wrong_requests(ours, gen_kwargs, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        ours.generate_until([instance("Say:", gen_kwargs)], disable_tqdm=True)


def test_the_command(folder, tasks, tmp_path, monkeypatch, capsys):
    import yaml

    from treeshare.integrations.lm_eval_command import main

    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(tasks["sums"]))
    arguments = ["--model", "treeshare", "--tasks", "sums", "--include_path", str(tmp_path)]
    arguments += ["--limit", "2", "--model_args"]
    monkeypatch.setattr("sys.argv", ["treeshare-lm-eval", *arguments, f"pretrained={folder},dtype=float32"])
    assert main() == 0
    assert "|sums |" in capsys.readouterr().out
    options = ["run", *arguments, f"pretrained={folder}", "dtype=float32", "trust_remote_code=False"]
    options += ["--batch_size", "auto", "--device", "cpu", "--gen_kwargs", "max_gen_toks=4"]
    options += ["--log_samples", "--output_path", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", ["treeshare-lm-eval", *options])  # as lm_eval's own page writes it
    assert main() == 0
    assert "|sums |" in capsys.readouterr().out
    assert list((tmp_path / "out").rglob("samples_sums*.jsonl"))
    monkeypatch.setattr("sys.argv", ["treeshare-lm-eval", *arguments, f"pretrained={folder},dtyp=float32"])
    assert main() == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("model argument: got 'dtyp'")
