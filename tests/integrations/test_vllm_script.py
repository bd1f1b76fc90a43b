"""One script, two imports: what ``docs/from_vllm.md`` calls the same runs on vLLM's interface and on ours."""

from __future__ import annotations

import pytest
import torch
import transformers

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


USER_SCRIPT = """
from {module} import LLM, BeamSearchParams, LoRARequest, SamplingParams, StructuredOutputsParams

llm = LLM(model, dtype="float32", tensor_parallel_size=1, gpu_memory_utilization=0.9, enable_lora=True)
params = SamplingParams(n=4, temperature=0.8, max_tokens=8, logprobs=1, prompt_logprobs=0)
(output,) = llm.generate(["Once upon"], params, use_tqdm=False)
best = max(output.outputs, key=lambda one: one.cumulative_logprob / len(one.token_ids))
assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(output.prompt_token_ids)
chat = llm.chat([{{"role": "user", "content": "Hello?"}}], llm.get_default_sampling_params(), use_tqdm=False)
beams = llm.beam_search([{{"prompt": "Once"}}], BeamSearchParams(beam_width=2, max_tokens=4))[0].sequences
choice = StructuredOutputsParams(choice=["yes", "no"])
answers = llm.generate("Well?", SamplingParams(n=8, max_tokens=8, structured_outputs=choice), use_tqdm=False)
before = llm.generate("Once", SamplingParams(max_tokens=8, temperature=0), use_tqdm=False)
request = LoRARequest("mine", 1, adapter)
greedy = SamplingParams(max_tokens=8, temperature=0)
after = llm.generate("Once", greedy, use_tqdm=False, lora_request=request)
texts = {{one.text for one in answers[0].outputs}}
summary = len(beams), texts, before[0].outputs[0].text, after[0].outputs[0].text
"""


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_users_script(chat_model, tmp_path):
    """Generating, choosing by mean log-probability, chat, beams, choices and an adapter."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_pretrained(chat_model, dtype="float32")
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(tmp_path)
    names = {"model": str(chat_model), "adapter": str(tmp_path)}
    exec(compile(USER_SCRIPT.format(module="treeshare"), "script", "exec"), names)
    num_beams, answers, before, after = names["summary"]
    assert num_beams == 2
    assert answers <= {"yes", "no"}
    assert before != after


DOCUMENTED = {
    "basic": """
from treeshare import LLM, SamplingParams

prompts = ["Hello, my name is", "The capital of France is"]
sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
llm = LLM(model=model, swap_space=4, max_seq_len_to_capture=256, disable_log_stats=True)
outputs = llm.generate(prompts, sampling_params)
for output in outputs:
    prompt = output.prompt
    generated_text = output.outputs[0].text
    print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")
summary = [output.prompt for output in outputs] == prompts
""",
    "chat": """
from treeshare import LLM, SamplingParams

llm = LLM(model=model, task="generate", reasoning_parser="", max_num_seqs=None)
sampling_params = llm.get_default_sampling_params().replace(max_tokens=6)
conversation = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello! How can I assist you today?"},
    {"role": "user", "content": [{"type": "text", "text": "Write an essay."}]},
]
single = llm.chat(conversation, sampling_params, use_tqdm=False)
batch = llm.chat([conversation for _ in range(3)], sampling_params=sampling_params, use_tqdm=False)
template = "{% for m in messages %}{{ m.content }}{% endfor %}"
other = llm.chat(
    conversation, sampling_params, False, None, chat_template=template, chat_template_content_format="string"
)
summary = (len(single), len(batch), other[0].prompt.endswith("Write an essay."))
assert not hasattr(single[0], "metrics")
""",
    "structured outputs": """
from enum import Enum

from pydantic import BaseModel

from treeshare import LLM, SamplingParams, StructuredOutputsParams

class CarType(str, Enum):
    sedan = "sedan"
    suv = "SUV"

class Car(BaseModel):
    car_type: CarType

grammar = '''
root ::= "SELECT " column " from " table
column ::= "col_1 " | "col_2 "
table ::= "table_1 " | "table_2 "
'''
llm = LLM(model=model, max_model_len=256)
texts = []
for values in (
    {"choice": ["Positive", "Negative"]}, {"regex": "[a-c]+@[a-c]+[.]com\\\\n"},
    {"json": Car.model_json_schema()}, {"grammar": grammar},
):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**values), max_tokens=200, seed=1)
    texts.append(llm.generate("Classify:", sampling_params=params, use_tqdm=False)[0].outputs[0].text)
car = Car.model_validate_json(texts[2])
summary = texts[0] in ("Positive", "Negative"), texts[1].endswith(".com\\n"), texts[3].startswith("SELECT ")
""",
    "tokens and parameters of each prompt": """
from treeshare import LLM, CompletionOutput, RequestOutput, SamplingParams, TextPrompt, TokensPrompt

llm = LLM(model, max_logprobs=20, tensor_parallel_size=1, max_num_batched_tokens=4096, seed=None)
ids = llm.get_tokenizer().encode("Hello")
each = [SamplingParams(seed=i, max_tokens=4, logprobs=3, detokenize=True) for i in range(3)]
prompts = [TokensPrompt(prompt_token_ids=ids), TextPrompt(prompt="Hello"), {"prompt_token_ids": ids}]
outputs = llm.generate(prompts, sampling_params=each, use_tqdm=False, priority=[0, 0, 0])
for output in outputs:
    assert isinstance(output, RequestOutput) and isinstance(output.outputs[0], CompletionOutput)
    completion = output.outputs[0]
    chosen = 0.0
    for token_id, position in zip(completion.token_ids, completion.logprobs):
        entry = position[token_id]
        chosen += entry.logprob
        print(token_id, entry.logprob, entry.rank, entry.decoded_token)
    assert abs(chosen - completion.cumulative_logprob) < 1e-6
summary = len({tuple(output.outputs[0].token_ids) for output in outputs})
""",
}
"""Scripts in the way of vLLM's documentation, with the import changed."""


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_scripts(chat_model, name):
    if name == "structured outputs":
        pytest.importorskip("llguidance", reason="llguidance is not installed")
    names = {"model": str(chat_model), "__name__": "script"}
    exec(compile(DOCUMENTED[name], name, "exec", dont_inherit=True), names)
    assert (
        names["summary"]
        == {
            "basic": True,
            "chat": (1, 3, True),
            "structured outputs": (True, True, True),
            "tokens and parameters of each prompt": 3,
        }[name]
    )
