"""What is given beside a model: an adapter's tokens are PEFT's own, a tokenizer and a template are used."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from treeshare import LLM, LoRARequest, SamplingParams
from treeshare.errors import ConfigError, ModelLoadError

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PROMPT = list(range(3, 24))
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


def tokens(llm):
    return llm.generate([PROMPT], GREEDY, use_tqdm=False)[0].outputs[0].token_ids


def adapted(folder, **options):
    """The folder's model with a random adapter."""
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("options", [{}, {"use_rslora": True, "lora_alpha": 3}, {"use_dora": True}])
def test_an_adapters_tokens_are_pefts(model_dir, tmp_path, options):
    folder = model_dir("llama")
    model = adapted(folder, **options)
    model.save_pretrained(tmp_path)
    expected = model.generate(
        input_ids=torch.tensor([PROMPT]),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )[0, len(PROMPT) :].tolist()
    assert tokens(LLM(folder, dtype="float32", lora=tmp_path)) == expected
    assert tokens(LLM(folder, dtype="float32")) != expected


def test_adapters_that_are_refused(model_dir, tmp_path):
    folder = model_dir("llama")
    with pytest.raises(ModelLoadError, match=r"expected a folder with adapter_config.json and adapter_model"):
        LLM(folder, lora=tmp_path)
    adapted(folder).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"contains an adapter .* as lora="):
        LLM(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lora: cannot merge"):
        LLM(model_dir("gpt2"), lora=tmp_path)
    with pytest.raises(ConfigError, match=r"got 'int8', expected None with lora"):
        LLM(folder, quantization="int8", lora=tmp_path)
    with pytest.raises(ConfigError, match=r"a PeftModel.*merge_and_unload"):
        LLM(adapted(folder))


def test_an_adapters_file_is_used_whole(model_dir, tmp_path):
    """What it lacks would be made up, and what nothing uses would be left out."""
    folder = model_dir("llama")
    adapted(folder).save_pretrained(tmp_path)
    path, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, written = load_file(path), settings.read_text()
    names = sorted(whole)
    save_file({name: whole[name] for name in names[1:]}, path)
    with pytest.raises(
        ModelLoadError, match=r"adapter_model.safetensors lacks model.*lora_A.*; adapter_config.json must be"
    ):
        LLM(folder, lora=tmp_path)
    save_file(whole | {"base_model.model.nobody.weight": torch.zeros(1)}, path)
    with pytest.raises(ModelLoadError, match=r"has, and nothing uses, nobody.weight; "):
        LLM(folder, lora=tmp_path)
    save_file(whole, path)
    settings.write_text(json.dumps(json.loads(written) | {"peft_type": "IA3"}))
    with warnings.catch_warnings(), pytest.raises(ModelLoadError, match=r"lacks .*ia3_l.* and \d+ more; "):  # noqa: PT012
        warnings.simplefilter("ignore", UserWarning)  # of peft, at the fields of another kind
        LLM(folder, lora=tmp_path)
    settings.write_text(written)
    LLM(folder, lora=tmp_path)


def test_an_adapter_leaves_a_model_in_memory_as_it_is(model_dir, tmp_path):
    adapted(model_dir("llama")).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir("llama"), dtype="float32")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert tokens(LLM(model, lora=tmp_path)) == tokens(
        LLM(model_dir("llama"), dtype="float32", lora=tmp_path)
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert tokens(LLM(model)) == tokens(LLM(model_dir("llama"), dtype="float32"))


def test_what_would_not_be_used_is_refused(model_dir):
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir("llama"), dtype="float32")
    with pytest.raises(ConfigError, match="chat_template: the model has no tokenizer"):
        LLM(model, chat_template="{{ messages }}")
    for given in (model, model_dir("llama"), "smollm2-135m"):
        with pytest.raises(ConfigError, match="revision: got 'main', expected None: the model does not come"):
            LLM(given, revision="main")


def test_a_tokenizer_and_a_template(model_dir, tmp_path):
    folder = model_dir("llama")
    with pytest.raises(ConfigError, match=r"chat_template: the model has no tokenizer"):
        LLM(folder, chat_template="{{ messages }}")
    with pytest.raises(ConfigError, match=r"tokenizer: got 5"):
        LLM(folder, tokenizer=5)


def test_an_adapter_named_in_a_call(model_dir, tmp_path):
    """It holds for all calls from the first that names it; another, or none, is refused."""
    folder = model_dir("llama")
    adapted(folder).save_pretrained(tmp_path)
    request = LoRARequest("adapter", 1, str(tmp_path))
    expected = tokens(LLM(folder, dtype="float32", lora=tmp_path))
    llm = LLM(folder, dtype="float32", enable_lora=True)
    assert tokens(llm) != expected
    for named in (request, [request]):
        found = llm.generate([PROMPT], GREEDY, use_tqdm=False, lora_request=named)
        assert found[0].outputs[0].token_ids == expected
    for other in (None, LoRARequest("other", 2, str(folder)), [request, None]):
        with pytest.raises(ConfigError, match="lora_request"):
            llm.generate([PROMPT, PROMPT], GREEDY, use_tqdm=False, lora_request=other)
    with pytest.raises(ConfigError, match="enable_lora=True"):
        LLM(folder).generate([PROMPT], GREEDY, use_tqdm=False, lora_request=request)
