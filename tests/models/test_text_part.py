"""Multimodal folders: the text model inside is loaded, is the whole's own, and sees no images.

``scripts/model_table.py`` compares each kind; here are the forms in which folders come.
"""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.gguf_models import logprobs_of
from tests.models.tiny import _COMMON
from tests.scripts.loading import ROOT, load_script
from treeshare import LLM
from treeshare.errors import ConfigError, TreeshareError
from treeshare.models import describe_model, load_model
from treeshare.models.folder import require_layers
from treeshare.models.miniature import spread_weights
from treeshare.models.text_part import text_part
from treeshare.models.tokenizer import load_tokenizer

_TEXT = {**_COMMON, "num_hidden_layers": 2, "max_position_embeddings": 128}
VISION = load_script(ROOT / "scripts", "model_configs").VISION
_IMAGE = 150
_TOKENS = torch.randint(2, 150, (60,), generator=torch.Generator().manual_seed(1)).tolist()


def _gemma3():
    text = {
        **_TEXT,
        "head_dim": 16,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    vision = VISION | {"vision_use_head": False}
    return transformers.Gemma3Config(text_config=text, vision_config=vision, image_token_index=_IMAGE)


def _mistral3():
    text = transformers.MistralConfig(**_TEXT, sliding_window=16).to_dict()
    return transformers.Mistral3Config(
        text_config=text, vision_config=VISION | {"model_type": "pixtral"}, image_token_index=_IMAGE
    )


def _qwen2_5_vl():
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64}
    return transformers.Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": rope},
        vision_config=vision | {"fullatt_block_indexes": [0]},
        image_token_id=_IMAGE,
        video_token_id=151,
    )


KINDS = {"gemma3": _gemma3, "mistral3": _mistral3, "qwen2_5_vl": _qwen2_5_vl}
NEW = {
    "gemma3": [("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")],
    "mistral3": [("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head.")],
    "qwen2_5_vl": [("model.", "model.language_model."), ("visual.", "model.visual.")],
}
"""From the names that people's folders have to those of the classes today."""


def save(kind, folder):
    """Save a random whole model; returns it."""
    model = transformers.AutoModelForImageTextToText.from_config(KINDS[kind](), dtype=torch.float32).eval()
    spread_weights(model)
    model.save_pretrained(folder)
    return model


def renamed(name, pairs):
    for old, new in pairs:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a kind, and the whole model."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = (folder, save(kind, folder))
        return made[kind]

    return get


def error(folder, whole):
    llm = LLM(folder, dtype="float32", kv_budget_bytes=1 << 24)
    (score,) = llm.score([(_TOKENS[:1], _TOKENS[1:])], use_tqdm=False)
    return float((torch.tensor(score.logprobs) - logprobs_of(whole, _TOKENS)).abs().max())


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", pytest.param("mistral3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("names", ["old", "new"])
def test_text_is_the_wholes(kind, names, saved, tmp_path, capsys):
    folder, whole = saved(kind)
    if names == "new":
        tensors = load_file(folder / "model.safetensors")
        changed = {renamed(key, NEW[kind]): value for key, value in tensors.items()}
        assert changed.keys() != tensors.keys()
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        folder = tmp_path
    assert error(folder, whole) <= 2e-4
    assert f"tensors of its files are other parts' of {kind} than its text model's" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["gemma3"])
def test_sizes_and_windows_are_the_text_models(kind, saved):
    folder, whole = saved(kind)
    loaded = load_model(folder, "float32")
    assert describe_model(folder).geometry == loaded.geometry
    assert [layer.reach for layer in loaded.geometry.layers] == [16, None]
    assert loaded.max_model_len == 128
    text = whole.model.language_model
    assert sum(p.numel() for p in loaded.model.parameters()) == sum(p.numel() for p in text.parameters())
    assert loaded.eos_token_ids == {1}


def test_images_are_refused_by_name(saved):
    folder, _ = saved("qwen2_5_vl")
    llm = LLM(folder, dtype="float32", kv_budget_bytes=1 << 22)
    for token, what in ((_IMAGE, "image"), (151, "video")):
        prompt = [*_TOKENS[:5], token, *_TOKENS[:3]]
        message = rf"^prompts\[0\]: got 'a token \({token}\) that stands for {what} input', expected text"
        with pytest.raises(ConfigError, match=message):
            llm.generate([prompt], use_tqdm=False)
        with pytest.raises(ConfigError, match=f"stands for {what} input"):
            llm.score([(prompt, _TOKENS[:2])], use_tqdm=False)
        llm.score([(_TOKENS[:2], prompt)], use_tqdm=False)  # which the model may have drawn
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    from treeshare.engine.chat import content_text

    with pytest.raises(ConfigError, match="content: got the type 'image_url', expected text"):
        content_text([{"type": "text", "text": "What is this?"}, part])


def test_other_kinds_are_refused_by_name(tmp_path):
    """A window in their text models would not be looked for; nor would half of a wrapper's code run."""
    configs = {
        "qwen3_5": transformers.Qwen3_5Config(),
        "paligemma": transformers.PaliGemmaConfig(),
        "musicgen": transformers.MusicgenConfig(
            text_encoder={"model_type": "t5"},
            audio_encoder={"model_type": "encodec"},
            decoder={"model_type": "musicgen_decoder"},
        ),
    }
    for kind, config in configs.items():
        config.save_pretrained(tmp_path / kind)
        for load in (load_model, describe_model):
            with pytest.raises(TreeshareError) as caught:
                load(tmp_path / kind)
            assert "\n" not in str(caught.value)
    with pytest.raises(TreeshareError, match="recurrent or convolutional state"):
        describe_model(tmp_path / "qwen3_5")
    with pytest.raises(TreeshareError, match="paligemma: not implemented: a composite model of this kind"):
        describe_model(tmp_path / "paligemma")


@pytest.mark.slow
def test_int8_weights_are_kept(saved, monkeypatch, tmp_path):
    """A second load reads them from the cache; a head that is no embedding stays one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, _ = saved("qwen2_5_vl")
    first, second = (load_model(folder, quantization="int8") for _ in range(2))
    assert first.fingerprint() == second.fingerprint()
    assert type(second.model).__name__ == "Qwen2_5_VLTextForCausalLM"
    assert not second.model.config.tie_word_embeddings


def test_a_processors_template_is_the_chats(saved, tmp_path):
    """It may go through parts alone: then a text is a list of one."""
    from treeshare.engine.chat import ChatOptions, render_chat

    template = (
        "{% for m in messages %}{{ m.role }}:{% for c in m.content | selectattr('type', 'equalto', 'text') %}"
        "{{ c.text }}{% endfor %};{% endfor %}"
    )
    folder, _ = saved("gemma3")
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).symlink_to(folder / name)
    vocabulary = {character: number for number, character in enumerate("abcdefghijk")}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    tokenizer = load_tokenizer(str(tmp_path))
    messages = [{"role": "user", "content": "abc"}]
    assert render_chat(tokenizer, messages, ChatOptions(), model_id="x") == "user:abc;"
    plain = ChatOptions(chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert render_chat(tokenizer, messages, plain, model_id="x") == "abc"


def test_what_the_whole_says_of_its_ends_and_its_head_is_the_texts():
    config = _gemma3()
    config.eos_token_id, config.text_config.eos_token_id = [1, 106], None
    config.tie_word_embeddings, config.text_config.tie_word_embeddings = False, True
    part = text_part(config)
    assert part.config.eos_token_id == [1, 106]
    assert part.config.tie_word_embeddings is False
    assert part.whole == "gemma3"


@pytest.mark.slow
def test_damaged_composite_configurations_are_one_line_each(saved, tmp_path):
    folder, _ = saved("gemma3")
    whole = json.loads((folder / "config.json").read_text())
    changes = {
        "no text": {"text_config": None},
        "an empty text": {"text_config": {}},
        "a number": {"text_config": 3},
        "another kind": {"text_config": {"model_type": "t5"}},
        "no heads": {"text_config": whole["text_config"] | {"num_attention_heads": 0}},
        "a vision that is none": {"vision_config": 3},
    }
    for name, change in changes.items():
        place = tmp_path / name
        place.mkdir()
        (place / "model.safetensors").symlink_to(folder / "model.safetensors")
        (place / "config.json").write_text(json.dumps(whole | change))
        for load in (load_model, describe_model):
            message = ""
            try:
                load(place)
            except TreeshareError as error:
                message = str(error)
            assert "\n" not in message


def test_a_vocabulary_for_each_layer_is_no_number_of_layers(tmp_path):
    """Gemma 4's and 3n's configurations have one."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"vocab_size_per_layer_input": 262144, "num_hidden_layers": 35}))
    require_layers(path)
    path.write_text(json.dumps({"text_config": {"num_hidden_layers": 262144}}))
    with pytest.raises(TreeshareError, match=r"num_hidden_layers: got 2\.62e"):
        require_layers(path)
