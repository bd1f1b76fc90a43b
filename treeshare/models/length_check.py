"""Checks on a small model of the same class what appears only beyond some length: windows, positions.

A prompt that is longer than the windows of people's models would cost as much as a run. In a small random
model they are a few tokens long, and a tree outgrows all of them in a fraction of a second.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from treeshare import files
from treeshare.attention import CpuAttention
from treeshare.config import ARITHMETIC
from treeshare.errors import UnsupportedModelError
from treeshare.models.adapter import ATTENTION_NAME
from treeshare.models.cache import cache_dir
from treeshare.models.calls import discover_calls
from treeshare.models.checkpoint import say
from treeshare.models.construction import quietly
from treeshare.models.miniature import small_model
from treeshare.models.rope import hold_rope
from treeshare.models.self_check import branching_layout, plain_sdpa
from treeshare.models.step import TreeStep, running
from treeshare.models.support import max_model_len
from treeshare.models.written_out import bind_attention, set_attention

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_LENGTH, _MAX_POSITIONS = 4, 64
"""Windows and their like become 4 tokens, 5, and so on, of 64 at most."""

_SHARED, _TAILS, _NUM_NEW = 13, (5, 6), 8
"""Tokens of the tree's root and of its children's prompts, and those that each child generates."""

_ERROR = 1e-3
"""Largest difference of a logit that is still rounding, relative to the largest logit, in float32."""


def require_lengths(model: Any) -> None:  # noqa: ANN401
    """Refuse a model unless a small one of its class computes the same in a tree as by ``generate``.

    Costs about half a second, once for a class and configuration: success is remembered in the user's cache.

    Raises:
        UnsupportedModelError: Saying by how much they differ.
    """
    place = _place(model)
    if place.is_file():
        return
    kind = model.config.model_type
    with quietly():
        small = small_model(
            type(model), model.config, first_length=_FIRST_LENGTH, max_positions=_MAX_POSITIONS
        )
        if small is not None:
            compare(small)
    if small is None:
        say(kind, "its windows are not checked: its configuration cannot be made small")
        return
    with contextlib.suppress(OSError):  # then it is checked again
        place.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(place, files.dump_json({"class": type(model).__name__, "kind": kind}))


def _place(model: Any) -> Path:  # noqa: ANN401
    """The file that says that models of this class and configuration were checked, by this code."""
    digest = hashlib.sha256()
    versions = (ARITHMETIC, transformers.__version__, torch.__version__)
    fields = sorted((str(name), repr(value)) for name, value in model.config.to_dict().items())
    digest.update(repr((type(model).__module__, type(model).__name__, versions, fields)).encode())
    digest.update(_code())
    return cache_dir() / "checked" / f"{digest.hexdigest()[:32]}.json"


@functools.cache
def _code() -> bytes:
    """A hash of the modules that a model's check goes through."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.digest()


@torch.inference_mode()
def compare(small: Any) -> float:  # noqa: ANN401
    """The largest difference between a model's logits in a tree and by ``generate``, relative to the largest.

    Args:
        small: A model as transformers makes it, with the attention that its users get; bound to treeshare's
            when this returns.

    Raises:
        UnsupportedModelError: If it is more than rounding.
    """
    kind = small.config.model_type
    vocab_size = small.get_output_embeddings().weight.shape[0]
    draws = torch.Generator().manual_seed(0)
    shared, *tails = (torch.randint(vocab_size, (n,), generator=draws) for n in (_SHARED, *_TAILS))
    with plain_sdpa():
        parts = [_generated(small, torch.cat([shared, tail])) for tail in tails]
    expected = torch.cat([parts[0][1], parts[1][1][_SHARED:]])
    forward = torch.cat([parts[0][2], parts[1][2][_SHARED:]])
    own = _difference(forward, expected)
    if not own <= _ERROR:
        raise UnsupportedModelError(
            f"{kind}: transformers' generate differs from its own forward without a cache "
            f"(by {own:.2g} of the largest logit); this model is not supported"
        )
    hold_rope(small, max_model_len(small.config))
    bind_attention(small)
    set_attention(small, ATTENTION_NAME)
    geometry, calls = discover_calls(small)
    tails = [tokens[_SHARED:] for tokens, *_ in parts]
    layout = branching_layout(geometry, _SHARED, *map(len, tails))
    with running(TreeStep(CpuAttention(), layout, calls)):
        got = small(
            input_ids=torch.cat([shared, *tails]).unsqueeze(0),
            position_ids=layout.positions.unsqueeze(0),
            use_cache=False,
        ).logits[0]
    error = _difference(got.float(), expected)
    if not error <= _ERROR:
        raise UnsupportedModelError(
            f"{kind}: a small model of its kind computes something else beyond its windows, chunks or other "
            f"lengths (logits differ by {error:.2g} of the largest); this model is not supported"
        )
    return error


def _difference(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())


def _generated(small: Any, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
    """Tokens of a prompt and of its greedy completion, their logits by ``generate``, and by one forward.

    ``generate`` gives logits of the prompt's last token and those that follow; the prompt's others are the
    forward's.
    """
    options = transformers.GenerationConfig(
        max_new_tokens=_NUM_NEW, do_sample=False, eos_token_id=None, pad_token_id=0, bos_token_id=0
    )
    small.generation_config.eos_token_id = None  # which the options' would not replace
    output = small.generate(
        prompt.unsqueeze(0),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        generation_config=options,
        return_dict_in_generate=True,
        output_logits=True,
    )
    tokens = output.sequences[0, :-1]  # the last was drawn, not computed with
    forward = small(input_ids=tokens.unsqueeze(0), use_cache=False).logits[0].float()
    generated = torch.cat(output.logits).float()
    return tokens, torch.cat([forward[: len(tokens) - len(generated)], generated]), forward
