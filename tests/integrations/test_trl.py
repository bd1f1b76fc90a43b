"""TRL's ``GRPOTrainer`` with completions of ours, on tiny models."""

from __future__ import annotations

import copy
import itertools
import types
import warnings

import numpy as np
import pytest
import torch
import transformers

from tests.evals.tiny_text import save_text_model
from tests.kernel_levels import LEVELS
from treeshare import LLM, SamplingParams
from treeshare.errors import ConfigError
from treeshare.integrations.trl import TreeRollout, sampling_params
from treeshare.sampling import problem_key

TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_text_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def llm(folder):
    return LLM(folder, dtype="float32")


def logprobs_by(model, prompt, completion, temperature):
    """The model's log-probabilities of a completion's tokens, one prompt at a time, without any cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0, len(prompt) - 1 : -1]
        return (logits / temperature).log_softmax(-1)[range(len(completion)), completion]


def assert_within_budget(folder, weights, rollout, temperature=TEMPERATURE):
    """Error against float64 at most twice that of plain float32, plus rounding of the output."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(weights)
    exact_model = copy.deepcopy(model).double()
    ours, plain, exact = [], [], []
    for prompt, completion, logprobs in zip(*rollout.values(), strict=True):
        assert len(completion) == len(logprobs) > 0
        ours.append(torch.tensor(logprobs, dtype=torch.float64))
        plain.append(logprobs_by(model, prompt, completion, temperature).double())
        exact.append(logprobs_by(exact_model, prompt, completion, temperature))
    ours, plain, exact = map(torch.cat, (ours, plain, exact))
    budget = 2 * (plain - exact).abs().max() + torch.finfo(torch.float32).eps * exact.abs().max()
    assert (ours - exact).abs().max() <= budget


def train(folder, rollout_func, output, **options):
    """Train for three steps on eight prompts."""
    trl = pytest.importorskip("trl", reason="pip install treeshare[trl]")
    from datasets import Dataset

    options = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_steps": 3,
        "max_completion_length": 8,
        "temperature": TEMPERATURE,
        "learning_rate": 0.01,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
    } | options
    with warnings.catch_warnings():  # transformers' own names that TRL still uses; that the hook may change
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        trainer = trl.GRPOTrainer(
            model=str(folder),
            reward_funcs=lambda completions, **_: [
                float(text.count("e") + len(text)) for text in completions
            ],
            args=trl.GRPOConfig(output_dir=str(output), **options),
            train_dataset=Dataset.from_list([{"prompt": f"some words {i} and more"} for i in range(8)]),
            rollout_func=rollout_func,
        )
        trainer.train()
    return trainer


def test_a_few_steps(folder, llm, tmp_path):
    """Log-probabilities are those of the trainer's model at that step, and its weights are what generates."""
    rollout, seen, calls = TreeRollout(llm), [], []

    def checked(prompts, trainer):
        output = rollout(prompts, trainer)
        weights = {name: value.clone() for name, value in llm.model.state_dict().items()}
        assert all(torch.equal(weights[name], value) for name, value in trainer.model.state_dict().items())
        assert len(prompts) == 8 == len(output["completion_ids"])  # a prompt comes once for each completion
        tokens = [trainer.processing_class(text=prompt)["input_ids"] for prompt in prompts]
        assert output["prompt_ids"] == tokens
        assert_within_budget(folder, trainer.model.state_dict(), output)
        seen.append(weights)
        calls.append(output["completion_ids"])
        return output

    train(folder, checked, tmp_path)
    assert len(seen) == 3
    assert llm.engine.weights_version == 3
    for before, after in itertools.pairwise(seen):
        assert not torch.equal(before["model.norm.weight"], after["model.norm.weight"])
    assert calls[0] != calls[1] != calls[2]


class Tokenizer:
    """Numbers in, numbers out."""

    def __call__(self, text):
        return {"input_ids": [[int(word) for word in words.split()] for words in text]}

    def apply_chat_template(self, conversation, **options):
        assert options["add_generation_prompt"]
        return self([messages[-1]["content"] for messages in conversation])


def stub(llm, **changes):
    """What a trainer shows of itself, its model a copy of ``llm``'s as transformers has it."""
    accelerator = types.SimpleNamespace(
        num_processes=1, process_index=0, distributed_type="NO", unwrap_model=lambda model, **_: model
    )
    model = types.SimpleNamespace(training=True, state_dict=llm.model.state_dict)
    values = {
        "accelerator": accelerator,
        "args": types.SimpleNamespace(seed=1, generation_kwargs=None),
        "chat_template": None,
        "chat_template_kwargs": {},
        "eos_token_ids": [1],
        "max_completion_length": 6,
        "min_p": None,
        "model": model,
        "num_generations": 4,
        "num_generations_eval": 2,
        "processing_class": Tokenizer(),
        "repetition_penalty": 1.0,
        "state": types.SimpleNamespace(global_step=0),
        "temperature": 1.0,
        "tools": [],
        "top_k": 0,
        "top_p": 1.0,
    }
    return types.SimpleNamespace(**values | changes)


def test_a_prompt_for_each_completion_or_once(llm):
    """As the trainer calls it, and as its documentation says: the same completions."""
    trainer = stub(llm)
    once = TreeRollout(llm)(["3 4 5", "3 4 6"], trainer)
    repeated = TreeRollout(llm)(["3 4 5"] * 4 + ["3 4 6"] * 4, trainer)
    assert once == repeated
    assert len(once["completion_ids"]) == 8
    assert once["prompt_ids"] == [[3, 4, 5]] * 4 + [[3, 4, 6]] * 4
    trainer.model.training = False
    assert len(TreeRollout(llm)(["3 4 5"], trainer)["completion_ids"]) == 2


def test_a_prompt_that_comes_twice_as_often_gets_other_completions(llm):
    found = TreeRollout(llm)(["3 4 5"] * 8, stub(llm))
    assert len({tuple(ids) for ids in found["completion_ids"]}) > 4


def test_conversations(llm):
    rollout = TreeRollout(llm)
    talks = [[{"role": "user", "content": text}] for text in ("3 4 5", "3 4 6")]
    assert rollout(talks, stub(llm)) == TreeRollout(llm)(["3 4 5", "3 4 6"], stub(llm))


def test_random_numbers_differ_by_call_step_and_process(llm):
    rollout, trainer = TreeRollout(llm), stub(llm)
    found = [rollout(["3 4 5"], trainer), rollout(["3 4 5"], trainer)]
    trainer.state.global_step = 1
    found.append(rollout(["3 4 5"], trainer))
    trainer.accelerator.process_index = 1
    found.append(rollout(["3 4 5"], trainer))
    assert len({str(sample["completion_ids"]) for sample in found}) == 4
    trainer = stub(llm)
    again = TreeRollout(llm)
    assert [again(["3 4 5"], trainer) for _ in range(2)] == found[:2]


def test_each_process_of_several_gets_what_it_asks_for(llm):
    trainer = stub(llm)
    trainer.accelerator.num_processes = 2
    assert len(TreeRollout(llm)(["3 4 5", "3 4 6"], trainer)["completion_ids"]) == 2


def test_weights_are_taken_over_once_a_step(llm):
    rollout, trainer = TreeRollout(llm), stub(llm)
    for step, version in ((0, 1), (0, 1), (1, 2), (1, 2), (2, 3)):
        trainer.state.global_step = step
        rollout(["3 4 5"], trainer)
        assert llm.engine.weights_version == version


@pytest.mark.skipif(not LEVELS, reason="no compiled library, or none for this CPU")
@pytest.mark.usefixtures("private_cache")
def test_int8_quantises_each_steps_weights(folder, tmp_path):
    """As a model that was loaded with these weights, and its log-probabilities are those of its tokens."""
    llm = LLM(folder, dtype="float32", quantization="int8")
    trained = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    before = TreeRollout(llm)(["3 4 5"], stub(llm, model=trained))
    with torch.no_grad():
        for weight in trained.parameters():
            weight.mul_(1.25)
    trained.save_pretrained(tmp_path)
    trainer = stub(llm, model=trained)
    found = TreeRollout(llm)(["3 4 5"], trainer)
    fresh = LLM(tmp_path, dtype="float32", quantization="int8")
    assert found == TreeRollout(fresh)(["3 4 5"], trainer)
    assert found != before
    params = SamplingParams(**sampling_params(trainer, problem_key(b"1/0/0/0")) | {"n": 4}, logprobs=0)
    drawn = sorted(fresh.engine.run(fresh.requests([[3, 4, 5]], [params])), key=lambda c: c.completion_index)
    assert found["completion_ids"] == [completion.token_ids for completion in drawn]
    for ours, completion in zip(found["logprobs"], drawn, strict=True):
        assert ours == pytest.approx([row[0].logprob for row in completion.logprobs], rel=1e-6)


def test_logprobs_are_of_what_is_drawn_from(llm):
    """With filters: the chances of the tokens that are left."""
    found = TreeRollout(llm)(["3 4 5"], stub(llm, top_k=2, temperature=1.5, num_generations=16))
    firsts = {ids[0]: logprobs[0] for ids, logprobs in zip(*list(found.values())[1:], strict=True)}
    assert len(firsts) == 2
    assert sum(np.exp(list(firsts.values()))) == pytest.approx(1, rel=1e-6)


def test_what_cannot_be_done_is_refused(llm):
    trainer = stub(llm)
    trainer.args.generation_kwargs = {"do_sample": False}
    with pytest.raises(ConfigError, match="do_sample: got False"):
        TreeRollout(llm)(["3 4 5"], trainer)
    trainer.args.generation_kwargs = {"min_tokens": 2}
    with pytest.raises(ConfigError, match="min_tokens: got 2, expected 0"):
        TreeRollout(llm)(["3 4 5"], trainer)
    trainer = stub(llm)
    trainer.accelerator.distributed_type = "DistributedType.FSDP"
    with pytest.raises(ConfigError, match="weights sharded by FSDP"):
        TreeRollout(llm)(["3 4 5"], trainer)
    trainer = stub(llm)
    trainer.model.peft_config = {"default": types.SimpleNamespace(peft_type="PROMPT_TUNING")}
    with pytest.raises(ConfigError, match=r"cannot be merged .PROMPT_TUNING."):
        TreeRollout(llm)(["3 4 5"], trainer)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters_are_merged_into_a_copy(folder, llm):
    """The rollout is of the merged weights, and the trainer's adapters stay apart."""
    peft = pytest.importorskip("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = stub(llm)
    trainer.model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    )
    found = TreeRollout(llm)(["3 4 5"], trainer)
    names = {name for name, _ in trainer.model.named_parameters() if "lora_" in name}
    merged = copy.deepcopy(trainer.model).merge_and_unload(safe_merge=True).state_dict()
    assert names
    assert any(
        not torch.equal(llm.model.state_dict()[n], w) for n, w in LLM(folder).model.state_dict().items()
    )
    assert_within_budget(folder, merged, found, temperature=trainer.temperature)
