"""Tiny random models for ``record_outputs.py``: eight architectures, and a llama whose tokens are bytes.

They are made here and not taken from the tests, so that all commits get the same models.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

if TYPE_CHECKING:
    from pathlib import Path

VOCAB_SIZE = 160

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_WITHOUT_GROUPS = {key: value for key, value in _COMMON.items() if key != "num_key_value_heads"}
_GPT2 = {
    "vocab_size": VOCAB_SIZE,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 1024,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}

CONFIGS = {
    "gpt2": lambda: transformers.GPT2Config(**_GPT2),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_WITHOUT_GROUPS),
    "llama": lambda: transformers.LlamaConfig(**_COMMON),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, sliding_window=None),
    "olmo2": lambda: transformers.Olmo2Config(**_COMMON),
    "phi3": lambda: transformers.Phi3Config(**_COMMON),
    "qwen2": lambda: transformers.Qwen2Config(**_COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON, head_dim=16),
}

CHAT_TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"


def random_model(config: Any, seed: int = 0) -> Any:  # noqa: ANN401
    """A float32 model of ``config`` with random weights, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def tiny_model(work: Path, architecture: str) -> Path:
    """The folder of a tiny model without a tokenizer, made below ``work`` if it is not there."""
    path = work / architecture
    if not path.exists():
        random_model(CONFIGS[architecture]()).save_pretrained(path)
    return path


def text_model(work: Path) -> Path:
    """The folder of a tiny llama whose tokens are bytes, with a chat template."""
    path = work / "text"
    if not path.exists():
        random_model(transformers.LlamaConfig(**(_COMMON | {"vocab_size": 259}))).save_pretrained(path)
        (path / "generation_config.json").unlink()
        _byte_tokenizer().save_pretrained(path)
    return path


def _byte_tokenizer() -> Any:  # noqa: ANN401
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def forest(*, preamble: int = 96, branch: int = 48, own: int = 20, num_prompts: int = 4) -> list[list[int]]:
    """Prompts of random tokens: all share the preamble, and each pair shares a branch below it."""
    draws = random.Random(14)

    def tokens(count: int) -> list[int]:
        return [draws.randrange(3, VOCAB_SIZE) for _ in range(count)]

    shared, branches = tokens(preamble), [tokens(branch) for _ in range((num_prompts + 1) // 2)]
    return [shared + branches[i // 2] + tokens(own + i) for i in range(num_prompts)]
