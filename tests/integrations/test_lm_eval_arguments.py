"""lm-eval's model arguments, by the names of its ``hf`` and ``vllm`` models; bits are those of ``LLM``."""

# ruff: noqa: F401, F811 - fixtures are imported

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace

import pytest

pytest.importorskip("lm_eval")

from tests.integrations.test_lm_eval import SAMPLED, folder, instance, ours
from treeshare.errors import ConfigError


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("kv_budget=5", "model argument: got 'kv_budget', expected one of pretrained, model, "),
        ("kv_budget=5", "did you mean kv_budget_bytes?"),
        ("device=mps", "device: got 'mps', expected auto, cpu, or an available CUDA device"),
        ("model=x", "pretrained: got "),
        ("max_length=100000", "max_length: got 100000, expected an integer in [2, 512]"),
        ("dtype=int4", "dtype: got 'int4'"),
        ("dtype=float16", "dtype: got 'float16'"),
        ("trust_remote_code=True", "code from a model's folder is never run"),
        ("parallelize=True", "parallelize: got True, expected False; one process computes a model"),
        ("load_in_4bit=True", "load_in_4bit: got True"),
        ("tensor_parallel_size=2", "tensor_parallel_size: got 2"),
        ("backend=seq2seq", "only decoder-only models are supported"),
        ("revision=v1", "revision: got 'v1', expected None: the model does not come from the hub"),
        ("dtype=float32,torch_dtype=float32", "torch_dtype: got 'float32', expected dtype once"),
        ("gguf_file=x", "gguf_file: got 'x', expected nothing; the file itself is the model"),
    ],
)
def test_wrong_arguments(folder, arguments, message):
    from treeshare.integrations.lm_eval import TreeshareLM

    with pytest.raises(ConfigError, match=re.escape(message)):
        TreeshareLM.create_from_arg_string(f"pretrained={folder},{arguments}")


HARMLESS = (
    "revision=main,trust_remote_code=False,use_fast_tokenizer=True,parallelize=False,backend=causal,"
    "truncation=False,logits_cache=True,attn_implementation=sdpa,load_in_8bit=False,tensor_parallel_size=1,"
    "gpu_memory_utilization=0.8,data_parallel_size=1,enforce_eager=True,softmax_dtype=float32"
)
"""What people write for lm-eval's ``hf`` and ``vllm`` models that changes nothing here."""


def test_arguments_of_the_other_models(folder, ours):
    """Their names give the same model; a tokenizer of another folder and a limit of vLLM's are taken."""
    from treeshare.integrations.lm_eval import TreeshareLM

    model = TreeshareLM.create_from_arg_string(
        f"pretrained={folder},torch_dtype=float32,tokenizer_path={folder},max_model_len=128,{HARMLESS}",
        {"batch_size": 8, "max_batch_size": 64, "device": "cpu"},
    )
    assert (model.max_length, model.llm.max_model_len, model.llm.dtype) == (128, 128, "float32")
    requests = [instance(text, {"until": ["\n"], "max_gen_toks": 12}) for text in ("Say:", "Count 1 2 3")]
    assert model.generate_until(requests, True) == ours.generate_until(requests, True)


def test_truncation_is_hfs(folder, tmp_path):
    """With it, the tokenizer cuts contexts to its own maximum first, at its own side: not where we cut."""
    from lm_eval.models.huggingface import HFLM

    from treeshare.integrations.lm_eval import TreeshareLM

    shutil.copytree(folder, tmp_path / "model")
    settings = tmp_path / "model" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 40}))
    context = "The first words are kept, " + "and the rest is cut away " * 9
    request = [instance(context, {"until": [], "max_gen_toks": 9})]
    answers = {}
    for truncation in (True, False):
        arguments = f"pretrained={tmp_path / 'model'},dtype=float32,truncation={truncation}"
        answers[truncation] = TreeshareLM.create_from_arg_string(arguments).generate_until(request, True)
        hf = HFLM(str(tmp_path / "model"), device="cpu", dtype="float32", truncation=truncation)
        assert answers[truncation] == hf.generate_until(request, True)
    assert answers[True] != answers[False]


def test_bits_are_those_of_generate(folder, ours):
    """Greedy and drawn tokens with their log-probabilities, and scores, bit by bit."""
    from treeshare import LLM, SamplingParams

    ran = []
    run = ours.llm.engine.run

    def recording(requests):
        asked = [replace(r, params=replace(r.params, logprobs=0)) for r in requests]
        ran.append((asked, list(run(asked))))
        return iter(ran[-1][1])

    drawn = {**SAMPLED, "until": [], "seed": 5}
    requests = [
        instance("Say:", drawn),
        instance("Count 1 2 3", {"until": [], "max_gen_toks": 12}, doc_id=1),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ours.llm.engine, "run", recording)
        ours.generate_until(requests, disable_tqdm=True)
    ((asked, completions),) = ran
    llm = LLM(folder, dtype="float32")
    for completion in completions:
        request = asked[completion.request_index]
        (again,) = llm.engine.run([request])
        assert (completion.token_ids, completion.logprobs) == (again.token_ids, again.logprobs)
        assert len(completion.token_ids) == 12
    greedy = next(c for c in completions if asked[c.request_index].params.temperature == 0)
    prompt = list(asked[greedy.request_index].prompt_token_ids)
    (output,) = llm.generate(
        {"prompt_token_ids": prompt},
        SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=0),
        use_tqdm=False,
    )
    assert list(output.outputs[0].token_ids) == list(greedy.token_ids)
    ((total, is_greedy),) = ours._loglikelihood_tokens([(None, prompt, list(greedy.token_ids))], True)
    assert is_greedy
    assert total == llm.score([(prompt, list(greedy.token_ids))], use_tqdm=False)[0].total
    assert total == pytest.approx(output.outputs[0].cumulative_logprob, rel=1e-6)


def test_the_command_finds_the_model(monkeypatch):
    """In a process where nobody has imported it before."""
    from lm_eval.api import registry

    from treeshare.integrations import lm_eval_command

    for name in [name for name in sys.modules if name.startswith("treeshare.integrations.lm_eval.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "treeshare.integrations.lm_eval", raising=False)
    monkeypatch.delitem(registry.model_registry._objs, "treeshare", raising=False)
    registry._materialise_placeholder.cache_clear()
    lm_eval_command.name_model()
    assert registry.get_model("treeshare").__name__ == "TreeshareLM"
    registry._materialise_placeholder.cache_clear()
