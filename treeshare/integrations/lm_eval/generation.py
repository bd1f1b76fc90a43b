"""A task's ``generation_kwargs`` as sampling parameters, with the defaults of lm-eval's ``hf`` model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from treeshare.errors import ConfigError
from treeshare.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping

_SAMPLING_DEFAULTS = {"top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What transformers' ``generate`` takes where neither the task nor the model's generation configuration has a
value."""


_OPTIONAL = (
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "structured_outputs",
)
"""What a task may set by the names of ``SamplingParams``, as for lm-eval's ``vllm`` model."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How an answer is generated.

    Attributes:
        until: Where it ends, and its text is cut.
        params: How it is sampled.
    """

    until: list[str]
    params: SamplingParams


def make_generation(
    gen_kwargs: Mapping[str, Any],
    *,
    num_copies: int,
    max_gen_toks: int,
    eot_text: str,
    model_defaults: object,
) -> Generation:
    """Read a request's ``generation_kwargs``.

    Args:
        gen_kwargs: As the task has them.
        num_copies: How many answers are wanted.
        max_gen_toks: Maximum number of generated tokens where the task does not say.
        eot_text: The end-of-sequence token, which always ends an answer.
        model_defaults: The model's generation configuration.

    Raises:
        ConfigError: If a value is out of range, or a name is not implemented.
    """
    kwargs: dict[str, Any] = dict(normalize_gen_kwargs(gen_kwargs, max_gen_toks))
    until = handle_stop_sequences(kwargs.pop("until"), eos=eot_text)
    max_tokens, do_sample = kwargs.pop("max_gen_toks"), kwargs.pop("do_sample")
    temperature = kwargs.pop("temperature", 0.0)
    try:
        temperature = float(temperature)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError.of("temperature", got=temperature, expected="a number") from None
    if do_sample and not temperature:
        raise ConfigError.of("temperature", got=temperature, expected="more than 0 with do_sample: true")
    options: dict[str, Any] = {}
    for name, default in _SAMPLING_DEFAULTS.items():
        model_default = getattr(model_defaults, name, None)
        value = kwargs.pop(name, default if model_default is None else model_default)
        if do_sample or name == "repetition_penalty":
            options[name] = value
    for name in _OPTIONAL:
        if name in kwargs:
            options[name] = kwargs.pop(name)
    kwargs.pop("use_cache", None)
    if kwargs:
        known = "until, max_gen_toks, do_sample, temperature, " + ", ".join(_SAMPLING_DEFAULTS)
        raise ConfigError.of(
            "generation_kwargs", got=", ".join(kwargs), expected=f"of {known}, {', '.join(_OPTIONAL)}"
        )
    params = SamplingParams(
        n=num_copies,
        temperature=temperature if do_sample else 0,
        max_tokens=max_tokens,
        **options,
    )
    return Generation(until=until, params=params)
