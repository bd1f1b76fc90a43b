"""A tiny random model with a tokenizer of bytes, so that tasks' text prompts can be sampled."""

from __future__ import annotations

import functools

import torch
import transformers
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests.models.tiny import make_model

MAX_MODEL_LEN = 512
VOCAB_SIZE = 259


def byte_tokenizer():
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@functools.cache
def saved_text_model(folder, dtype=torch.float32, hidden_size=32, intermediate_size=64):
    """The folder of the saved model, without a generation configuration."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_MODEL_LEN,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    path = folder / "text"
    make_model(config, dtype).save_pretrained(path)
    (path / "generation_config.json").unlink()
    byte_tokenizer().save_pretrained(path)
    return path
