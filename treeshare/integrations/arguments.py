"""Arguments that harnesses pass on to the engine, by the harnesses' own names and by vLLM's."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from treeshare.errors import ConfigError
from treeshare.vllm_names import others_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from treeshare.engine.llm import LLM

ENGINE_ARGUMENTS = (
    "dtype",
    "quantization",
    "seed",
    "max_num_seqs",
    "kv_budget_bytes",
    "max_model_len",
    "threads",
    "backend",
    "sharing",
    "lazy_divergence",
    "tokenizer",
    "revision",
    "lora",
    "generation_config",
)
"""Those that go to ``LLM`` as they are."""

_OTHER_NAMES = {
    "torch_dtype": "dtype",
    "tokenizer_path": "tokenizer",
    "peft": "lora",
    "lora_local_path": "lora",
}
"""Names of the harnesses' other models for arguments of the engine."""

_ANY = object()
_ONE_PROCESS = "one process computes a model; run several with --ray"
_WEIGHTS = "weights are read from safetensors and GGUF files; quantization=int8 quantises them"

_ASKS_FOR_NOTHING: dict[str, tuple[tuple[object, ...], str]] = {
    "attn_implementation": ((_ANY,), ""),
    "auto_model_class": (("AutoModelForCausalLM",), "decoder-only models are all that is computed"),
    "autogptq": ((False,), _WEIGHTS),
    "data_parallel_size": ((1,), _ONE_PROCESS),
    "delta": ((), "merge the weights first"),
    "device_map": (("auto", "cpu"), "device= names the device"),
    "do_sample": ((True,), "--temperature 0 is greedy"),
    "gguf_file": ((), "the file itself is the model: FILE.gguf"),
    "gptqmodel": ((False,), _WEIGHTS),
    "hidden_states": ((False,), "they are not returned"),
    "load_in_4bit": ((False,), _WEIGHTS),
    "load_in_8bit": ((False,), _WEIGHTS),
    "logits_cache": ((_ANY,), ""),
    "low_cpu_mem_usage": ((_ANY,), ""),
    "max_cpu_memory": ((), "kv_budget_bytes= limits the memory of KV"),
    "max_memory_per_gpu": ((), "kv_budget_bytes= limits the memory of KV"),
    "mixed_precision_dtype": ((), "dtype= is that of all of the model"),
    "offload_folder": ((_ANY,), ""),
    "parallelize": ((False,), _ONE_PROCESS),
    "softmax_dtype": (("float32",), "log-probabilities are computed in float32"),
    "subfolder": (("",), "name the folder itself as the model"),
    "token": ((), "the hub's token is read from HF_TOKEN"),
    "tokenizer_call_args": (({},), "a tokenizer is called as transformers calls it"),
    "tp_plan": ((), _ONE_PROCESS),
    "truncation_side": (("left",), "contexts that are too long are cut on the left"),
    "use_chat_template": ((True,), "give a template by chat_template="),
    "use_fast_tokenizer": ((True,), "tokenizers are the fast ones"),
}
"""Other names of the harnesses' models: the values that change nothing here, ``None`` among them, and what to
do instead of asking for another. vLLM's names are answered by ``LLM`` itself."""


def engine_options(given: Mapping[str, Any], own: Sequence[str]) -> dict[str, Any]:
    """What ``LLM`` gets of a harness's model arguments.

    Args:
        given: What is left when a harness's adapter has taken its own.
        own: The adapter's own, for the message.

    Raises:
        ConfigError: If one is unknown (the message names the known ones and the nearest), or asks for what is
            not implemented (the message says what to do instead).
    """
    options: dict[str, Any] = {}
    for name, value in given.items():
        engine_name = _OTHER_NAMES.get(name, name)
        if name in _ASKS_FOR_NOTHING:
            _require_nothing(name, value)
        elif engine_name == "revision" and value in (None, "main"):
            pass  # the main branch is the default, and a folder has none
        elif name == "backend" and value in ("default", "causal", "seq2seq"):  # hf's kind of model
            if value == "seq2seq":
                raise ConfigError.of(
                    "backend", got=value, expected="causal: only decoder-only models are supported"
                )
        elif engine_name in ENGINE_ARGUMENTS:
            if engine_name in options:
                raise ConfigError.of(name, got=value, expected=f"{engine_name} once, under one name")
            options[engine_name] = value
        elif name in others_of("LLM"):
            options[name] = value
        else:
            raise _unknown(name, own)
    return options


def _require_nothing(name: str, value: object) -> None:
    accepted, instead = _ASKS_FOR_NOTHING[name]
    if value is None or any(each is _ANY or (type(each), each) == (type(value), value) for each in accepted):
        return
    expected = " or ".join(map(repr, accepted)) or "nothing"
    raise ConfigError.of(name, got=value, expected=expected, remedy=instead)


def _unknown(name: str, own: Sequence[str]) -> ConfigError:
    known = (*own, *ENGINE_ARGUMENTS)
    near = difflib.get_close_matches(name, (*known, *_OTHER_NAMES), n=1)
    remedy = f"did you mean {near[0]}?" if near else ""
    expected = "one of " + ", ".join(known)
    return ConfigError.of("model argument", got=name, expected=expected, remedy=remedy)


def check_for_workers(llm: LLM) -> None:
    """Refuse what other processes cannot make anew.

    Raises:
        ConfigError: If the model is in memory, or there are logits processors: without them workers would
            draw other tokens.
    """
    if llm.loaded.is_in_memory or not llm.loaded.extras.is_files:
        raise ConfigError(
            "model: got one in memory, expected files, because each Ray worker loads the model; "
            "save it and give the folder"
        )
    if llm.engine.processors:
        raise ConfigError(
            "logits_processors: got some, expected none, because Ray's workers cannot run them; use LLM"
        )
