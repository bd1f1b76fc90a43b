"""Text of completions: a tokenizer's decoding, in the prompt's context, whole and token by token."""

from treeshare.text.byte_level import bytes_of_letters
from treeshare.text.continuation import Continuation
from treeshare.text.detokenizer import Detokenizer
from treeshare.text.encoding import encode
from treeshare.text.growing_text import GrowingText, offsets

__all__ = ["Continuation", "Detokenizer", "GrowingText", "bytes_of_letters", "encode", "offsets"]
