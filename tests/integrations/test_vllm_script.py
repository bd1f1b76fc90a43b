"""One script, two imports: what README's table calls the same runs on vLLM's interface and on ours."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

import treeshare
from tests.integrations import vllm_stub

SCRIPT = """
from {module} import LLM, SamplingParams

llm = LLM(model, dtype="float32", seed=1, max_num_seqs=64)
tokenizer = llm.get_tokenizer()
shared = "You are a poet of few words. "
params = SamplingParams(
    n=3, temperature=0.8, top_p=0.95, top_k=40, min_p=0.01, presence_penalty=0.1, frequency_penalty=0.1,
    repetition_penalty=1.1, seed=7, max_tokens=12, min_tokens=2, logprobs=2, stop=["never there"],
    stop_token_ids=[1], ignore_eos=False, skip_special_tokens=True, include_stop_str_in_output=False,
)
ids = tokenizer.encode(shared + "Two")
prompts = [shared + "One", {{"prompt": shared + "Two"}}, {{"prompt_token_ids": ids}}]
found = []
for output in llm.generate(prompts, params, use_tqdm=False):
    assert output.finished and output.request_id == str(len(found))
    assert len(output.prompt_token_ids) == len(shared) + 3 and output.num_cached_tokens >= 0
    for completion in output.outputs:
        assert completion.finish_reason in ("stop", "length")
        assert completion.stop_reason is None or completion.stop_reason in (1, "never there")
        assert 2 <= len(completion.token_ids) <= 12
        assert len(completion.logprobs) == len(completion.token_ids)
        chosen = [at[i].logprob for i, at in zip(completion.token_ids, completion.logprobs)]
        assert abs(sum(chosen) - completion.cumulative_logprob) < 1e-9
        for token in completion.logprobs[0].values():
            assert token.rank >= 1 and isinstance(token.decoded_token, str)
    found.append((output.prompt, [completion.index for completion in output.outputs]))

each = [SamplingParams(temperature=0, max_tokens=n) for n in (1, 2)]
outputs = llm.generate([shared, shared + "x"], each, use_tqdm=False)
lengths = [len(output.outputs[0].token_ids) for output in outputs]
conversation = [{{"role": "user", "content": "Hello?"}}]
(answer,) = llm.chat(conversation, SamplingParams(max_tokens=4), use_tqdm=False)
both = llm.chat([conversation, conversation], SamplingParams(max_tokens=4), use_tqdm=False)
single = llm.generate("Once", use_tqdm=False)
summary = found, lengths, len(answer.outputs), len(both), len(single[0].outputs[0].token_ids) <= 16
"""


def test_one_script_with_only_the_import_changed(chat_model):
    summaries = {}
    for module in ("treeshare", "tests.integrations.vllm_stub"):
        names = {"model": str(chat_model)}
        exec(compile(SCRIPT.format(module=module), module, "exec"), names)
        summaries[module] = names["summary"]
    ours, theirs = summaries.values()
    assert ours == theirs
    assert ours[1] == [1, 2]


def test_the_stub_refuses_what_vllm_has_not():
    llm = vllm_stub.LLM("model")
    for call in (
        lambda: vllm_stub.SamplingParams(best_of=2),
        lambda: vllm_stub.LLM("model", kv_budget_bytes=1),
        lambda: llm.generate(["x"], None, False),
        lambda: llm.generate([{"text": "x"}]),
        lambda: llm.generate("x", treeshare.SamplingParams()),
    ):
        with pytest.raises(TypeError):
            call()


def table(title):
    """The rows of README's table under a heading: names of arguments and what is said of them."""
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (.+?) \| (same|absent|differs)", text.partition(title)[2].partition("\n## ")[0], re.M
    )
    return {name: verdict for names, verdict in rows for name in re.findall(r"`(\w+)[=`]", names)}


def test_the_readme_tells_the_truth_about_parameters():
    said = table("## From vLLM")
    ours = {field.name: field.default for field in dataclasses.fields(treeshare.SamplingParams)}
    theirs = {field.name: field.default for field in dataclasses.fields(vllm_stub.SamplingParams)}
    assert set(ours) <= set(theirs), "no name of our own"
    for name, default in theirs.items():
        if name not in ours:
            assert said[name] == "absent", name
        else:
            assert said[name] in ("same", "differs"), name
            assert ours[name] == default, name
    ours = inspect.signature(treeshare.LLM).parameters
    for name in inspect.signature(vllm_stub.LLM).parameters:
        assert (said[name] == "absent") == (name not in ours), name
    for name in ("generate", "chat"):
        ours = inspect.signature(getattr(treeshare.LLM, name)).parameters
        theirs = inspect.signature(getattr(vllm_stub.LLM, name)).parameters
        for argument in theirs:
            assert argument in ours or said[argument] == "absent", argument
