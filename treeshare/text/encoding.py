"""Text to token ids, whatever the tokenizer's files hold."""

from __future__ import annotations

from typing import Any

from treeshare.errors import ConfigError
from treeshare.failures import error_line, is_failure


def encode(tokenizer: Any, text: str, *, special_tokens: bool = True) -> list[int]:  # noqa: ANN401
    """Token ids of ``text``, with the special tokens that the tokenizer adds, or without.

    Raises:
        ConfigError: If the tokenizer fails: it has no token for a part of the text, or its files are damaged.
    """
    try:
        return list(tokenizer(text, add_special_tokens=special_tokens)["input_ids"])
    except BaseException as error:
        if not is_failure(error):
            raise
        raise ConfigError(
            f"prompt: the model's tokenizer cannot encode {str(text)[:40]!r}: {error_line(error)}"
        ) from error
