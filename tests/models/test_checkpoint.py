"""Weights: every one comes from the files, or the model is refused by the names of those that do not."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.models.tiny import _COMMON, ARCHITECTURES, make_model
from tests.turns import slow_but
from treeshare import LLM, AsyncLLM
from treeshare.cli.app import main
from treeshare.errors import ModelLoadError
from treeshare.models import describe_model, load_model
from treeshare.models.tensor_names import lost_experts, renamed, shortened, wrappers

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def copy_of(model_dir, tmp_path):
    return lambda architecture: shutil.copytree(model_dir(architecture), tmp_path / architecture)


def change(folder, function, file=FILE):
    """Write a file's tensors anew, as ``function`` gives them."""
    weights = {name: value.clone() for name, value in function(load_file(folder / file)).items()}
    save_file(weights, folder / file, metadata={"format": "pt"})
    return folder


def without(folder, *names, file=FILE):
    return change(folder, lambda weights: {k: v for k, v in weights.items() if k not in names}, file)


def refusal(folder, load=load_model):
    with pytest.raises(ModelLoadError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kinds(folder):
    """One tensor of each kind, that of the last layer."""
    return list({re.sub(r"\d+", "*", name): name for name in sorted(load_file(folder / FILE))}.values())


# -- missing --


@pytest.mark.parametrize("architecture", slow_but(("gpt2", "gpt_neox"), ARCHITECTURES))
def test_each_kind_of_tensor_is_missed(copy_of, capsys, architecture):
    """By name; a head alone is tied to the embedding instead, which is said."""
    folder = copy_of(architecture)
    whole = load_file(folder / FILE)
    for name in kinds(folder):
        save_file({k: v for k, v in whole.items() if k != name}, folder / FILE, metadata={"format": "pt"})
        if name in ("lm_head.weight", "embed_out.weight"):  # GPT-NeoX files' own name
            model = load_model(folder, "float32").model
            assert torch.equal(model.get_output_embeddings().weight, model.get_input_embeddings().weight)
            assert "its files lack lm_head.weight: tied to the embedding\n" in capsys.readouterr().err
        else:
            message = refusal(folder)
            assert re.match(rf"model: cannot load {folder}: [12] weights are not in its files: ", message)
            assert name in message


def test_more_than_a_message_holds(copy_of):
    folder = change(copy_of("llama"), lambda _: {})
    message = refusal(folder)
    count = len(make_model(transformers.AutoConfig.from_pretrained(folder)).state_dict())
    assert f": {count} weights are not in its files: lm_head.weight, " in message
    assert message.endswith(f" and {count - 3} others")


def test_every_entry_point_refuses(copy_of, capsys, monkeypatch, tmp_path):
    folder = without(copy_of("qwen3"), "model.layers.1.self_attn.q_norm.weight")
    for load in (LLM, AsyncLLM):
        assert "model.layers.1.self_attn.q_norm.weight" in refusal(folder, load)
    (tmp_path / "in.jsonl").write_text("{}\n")
    commands = [
        [
            "sample",
            "--task",
            "gsm8k",
            "--data",
            tmp_path / "in.jsonl",
            "--out",
            tmp_path / "run",
            "--model",
            folder,
        ],
        ["batch", tmp_path / "in.jsonl", tmp_path / "out.jsonl", "--model", folder],
        ["serve", folder, "--port", "0"],
        ["verify", "--model", folder],
    ]
    for command in commands:
        monkeypatch.setattr("sys.argv", ["treeshare", *map(str, command)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capsys.readouterr().err.splitlines()
        assert caught.value.code == 2, command
        if command[0] != "sample":  # whose data is read first
            assert "q_norm.weight" in said[-1]


def test_another_shape_is_named(copy_of):
    folder = change(copy_of("llama"), lambda w: w | {"model.norm.weight": torch.ones(63)})
    assert (
        "1 tensors of another shape than the model's: model.norm.weight (got [63], expected [64])"
        in refusal(folder)
    )


def test_layers_that_only_the_configuration_has(copy_of):
    folder = copy_of("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    assert "model.layers.3." in refusal(folder)


def test_layers_that_only_the_file_has_are_said(copy_of, capsys):
    folder = copy_of("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    load_model(folder)
    said = capsys.readouterr().err
    assert (
        "9 tensors of its files are not the model's, and not used: model.layers.2.input_layernorm.weight"
        in said
    )


# -- names --


@pytest.mark.parametrize(
    ("architecture", "change_name"),
    [
        ("llama", lambda name: f"_orig_mod.{name}"),
        pytest.param("olmo2", lambda name: f"module._orig_mod.{name}", marks=pytest.mark.slow),
        ("qwen3", lambda name: f"base_model.model.{name}"),
        pytest.param("gpt_neox", lambda name: f"_forward_module.module.{name}", marks=pytest.mark.slow),
        pytest.param(
            "phi3", lambda name: name.replace("model.", "model._orig_mod.", 1), marks=pytest.mark.slow
        ),
        ("gpt2", lambda name: "module." + re.sub(r"\.(\d+)\.", r".\1._checkpoint_wrapped_module.", name)),
        ("mistral", lambda name: re.sub(r"(layers\.\d+|mlp)\.", r"\1._fsdp_wrapped_module.", name)),
    ],
)
def test_what_trainers_put_around_names_is_taken_off(copy_of, capsys, architecture, change_name):
    folder = copy_of(architecture)
    whole = load_model(folder, "float32").fingerprint()
    change(folder, lambda weights: {change_name(name): value for name, value in weights.items()})
    capsys.readouterr()
    assert load_model(folder, "float32").fingerprint() == whole
    assert "took off the names of its tensors: " in capsys.readouterr().err


def test_a_name_of_their_own_is_not(copy_of):
    folder = change(copy_of("llama"), lambda w: {f"student.{name}": value for name, value in w.items()})
    message = refusal(folder)
    assert "weights are not in its files" in message
    assert "; not used: " in message
    assert "student." in message


@pytest.mark.parametrize("base", ["model.", ""])
def test_the_models_own_prefix_may_lack_or_come_twice(copy_of, base):
    folder = copy_of("llama")
    whole = load_model(folder, "float32").fingerprint()
    change(
        folder,
        lambda w: {
            name.replace("model.", base or "model.model.", 1)
            if base != "model."
            else name.removeprefix("model."): value
            for name, value in w.items()
        },
    )
    assert load_model(folder, "float32").fingerprint() == whole


@pytest.mark.parametrize("front", ["module.", "model.", "_orig_mod.model."])
def test_two_tensors_for_one_weight_are_refused(copy_of, front):
    name = "layers.0.mlp.up_proj.weight"
    other = {front + ("model." if front == "module." else "") + name: torch.zeros(96, 64)}
    folder = copy_of("llama")
    if front == "model.":
        other = {name: torch.zeros(96, 64)}
    message = refusal(change(folder, lambda weights: weights | other))
    assert "several tensors for the same weight: " in message
    assert name in message


def test_an_adapter_is_not_left_out(copy_of, capsys):
    """Beside the weights, in place of them, or in files of its own."""
    folder = copy_of("llama")
    whole = load_file(folder / FILE)
    place = "model.layers.0.self_attn.q_proj"
    low = {
        f"{place}.lora_A.default.weight": torch.ones(2, 64),
        f"{place}.lora_B.default.weight": torch.ones(64, 2),
    }
    change(folder, lambda weights: weights | low)
    assert "2 tensors of an adapter that is not merged" in refusal(folder)
    inside = {name.replace("q_proj.", "q_proj.base_layer."): value for name, value in whole.items()} | low
    change(folder, lambda _: {f"base_model.model.{name}": value for name, value in inside.items()})
    assert "of an adapter that is not merged" in refusal(folder)
    change(folder, lambda _: whole)
    load_model(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "contains an adapter (adapter_config.json)" in refusal(folder)


# -- shards --


@pytest.fixture
def shards(model_dir, tmp_path):
    """A folder of shards, and its index."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir("phi3"), dtype=torch.float32)
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    return tmp_path / "shards", json.loads((tmp_path / "shards" / INDEX).read_text())


def test_shards_are_read_whole(shards, model_dir):
    assert (
        load_model(shards[0], "float32").fingerprint()
        == load_model(model_dir("phi3"), "float32").fingerprint()
    )


@pytest.mark.parametrize("in_index", [True, False])
def test_a_tensor_that_its_shard_lacks(shards, in_index):
    folder, index = shards
    name = "model.layers.1.post_attention_layernorm.weight"
    without(folder, name, file=index["weight_map"][name])
    if not in_index:
        index["weight_map"].pop(name)
        (folder / INDEX).write_text(json.dumps(index))
    assert f"1 weights are not in its files: {name}" in refusal(folder)


def test_a_shard_that_is_lost_or_twice_or_of_another_kind(shards):
    folder, index = shards
    first, second = sorted(set(index["weight_map"].values()))[:2]
    kept = (folder / first).read_bytes()
    (folder / first).unlink()
    assert f"names files that do not exist: {first}" in refusal(folder)
    (folder / first).write_bytes(kept)
    name = min(load_file(folder / first))
    change(folder, lambda weights: weights | {name: load_file(folder / first)[name]}, second)
    assert f"two of its files contain the same tensors: {name}" in refusal(folder)
    index["weight_map"][name] = "weights.bin"
    (folder / INDEX).write_text(json.dumps(index))
    assert "got weights.bin, expected names of .safetensors files" in refusal(folder)


def test_one_file_beside_an_index_is_said(shards, model_dir, capsys):
    folder, _ = shards
    shutil.copy(model_dir("phi3") / FILE, folder)
    load_model(folder)
    assert f"takes {FILE}, not the " in capsys.readouterr().err


# -- experts --


def _mixture(folder, drop=()):
    config = transformers.Glm4MoeConfig(
        **_COMMON,
        head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
    )
    make_model(config).save_pretrained(folder)
    return change(folder, lambda w: {k: v for k, v in w.items() if not any(part in k for part in drop)})


def test_a_mixture_that_is_whole(tmp_path):
    assert load_model(_mixture(tmp_path), "float32")


@pytest.mark.parametrize(
    "drop",
    [
        ["layers.2.mlp.experts.3."],
        ["layers.1.mlp.experts.0.up_proj"],
        ["layers.1.mlp.experts.0.", "layers.1.mlp.experts.2."],
        ["layers.2.mlp.gate.weight"],
        ["e_score_correction_bias"],
    ],
)
def test_lost_experts_are_named(tmp_path, drop):
    message = refusal(_mixture(tmp_path / "cut", drop))
    assert drop[0].rstrip(".") in message or "experts" in message


def test_the_experts_that_others_show_to_be_lost():
    names = [
        f"l.{layer}.experts.{i}.{part}.weight"
        for layer in (1, 12)
        for i in range(3)
        for part in ("up", "down")
    ]
    assert lost_experts(names) == []
    lost = {names[2], names[3], names[8]}
    assert set(lost_experts(set(names) - lost)) == lost


def test_lists_for_messages():
    assert shortened(["b.10", "b.9", "a"]) == "a, b.9, b.10"
    assert shortened(f"b.{i}" for i in range(12)) == "b.0, b.1, b.2 and 9 others"
    assert (renamed("module.model.x"), wrappers(["module.model.x"])) == ("model.x", ["module."])
    assert (renamed("model.modules.x"), wrappers(["model.modules.x"])) == ("model.modules.x", [])


# -- dtype --


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.bfloat16, "bfloat16"),
        (torch.float16, "float32"),
        (torch.float32, "float32"),
        (torch.float64, "float32"),
    ],
)
def test_without_a_dtype_the_files_own(copy_of, stored, expected):
    """That of most numbers: norms are often kept in float32."""
    folder = copy_of("llama")
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    change(folder, lambda w: {k: v if "norm" in k else v.to(stored) for k, v in w.items()})
    loaded = load_model(folder)
    assert loaded.dtype == expected
    assert describe_model(folder).geometry == loaded.geometry
