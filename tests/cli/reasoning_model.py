"""A tiny random model with tokens for its reasoning's tags; its template shows reasoning and tools."""

from __future__ import annotations

import transformers

from tests.cli.text_model import VOCAB_SIZE, byte_tokenizer
from tests.models.tiny import make_model

START, END = VOCAB_SIZE, VOCAB_SIZE + 1
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "</s>{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}[assistant]{% if thinking %}<think>\n{% endif %}{% endif %}"
)


def saved_reasoning_model(folder, *, special=False, template=TEMPLATE):
    """The folder of the saved model; ``special``: its tags are special tokens."""
    import torch

    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE + 2,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.2,
    )
    path = folder / "reasoning"
    make_model(config, torch.float32).save_pretrained(path)
    (path / "generation_config.json").unlink(missing_ok=True)
    tokenizer = byte_tokenizer()
    tags = ["<think>", "</think>"]
    tokenizer.add_tokens(tags, special_tokens=special)
    assert tokenizer.convert_tokens_to_ids(tags) == [START, END]
    tokenizer.chat_template = template
    tokenizer.save_pretrained(path)
    return path
