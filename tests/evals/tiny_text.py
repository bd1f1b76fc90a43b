"""A tiny random model that reads text: one token a word or sign, with a chat template."""

from __future__ import annotations

import string

import tokenizers
import transformers

from tests.models.tiny import CONFIGS, make_model


def save_text_model(folder):
    """Save a llama of 160 tokens with its tokenizer; words it does not know are token 2."""
    vocabulary = {"<s>": 0, "</s>": 1, "<?>": 2} | {c: i for i, c in enumerate(string.printable, start=3)}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<?>"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"\w+|\W"), "isolated")
    raw.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<?>"
    )
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    config = CONFIGS["llama"]()
    config.max_position_embeddings = 8192
    make_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
