"""A loaded model with the engine that runs it: their properties, and how they are closed."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Never, Self

from treeshare.config import require_bool
from treeshare.engine.lora import adapter_of
from treeshare.engine.prompts import PromptEncoder
from treeshare.engine.requests import checked_requests, one_request
from treeshare.errors import ConfigError
from treeshare.models import weights_with_adapter
from treeshare.sampling import SamplingParams, suggested_params
from treeshare.vllm_names import absence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import torch

    from treeshare.config import EngineConfig
    from treeshare.engine.engine import Engine
    from treeshare.engine.lora import LoRARequests
    from treeshare.engine.prompts import Prompt
    from treeshare.engine.requests import Params
    from treeshare.engine.sequence import Request
    from treeshare.engine.stats import EngineStats
    from treeshare.models import LoadedModel


class OpenedModel:
    """A loaded model and its engine; a context manager that closes it.

    Args:
        engine: Runs the model.
        seed: For requests whose parameters have none.
        enable_lora: Whether a call may name an adapter.
        suggested: Sampling parameters that the model's publisher suggests, by name.

    Attributes:
        loaded: The model and what is known of it.
        engine: Runs requests, for callers that make them themselves.
        prompt_encoder: Makes token ids of texts and conversations.
        seed: As given.
        suggested: As given.
    """

    def __init__(
        self,
        engine: Engine,
        seed: int,
        suggested: Mapping[str, Any],
        *,
        enable_lora: bool,
    ) -> None:
        require_bool("enable_lora", enable_lora)
        self.seed = seed
        self._enable_lora = enable_lora
        own = engine.loaded.extras.lora
        self._adapter = None if own is None else os.path.realpath(own)
        self._was_named = False
        self.engine = engine
        self.loaded: LoadedModel = engine.loaded
        self.prompt_encoder = PromptEncoder(self.loaded.tokenizer, self.loaded.model_id)
        self.suggested = dict(suggested)
        self._default_params = suggested_params(suggested, self.loaded.model_id)

    @property
    def model(self) -> Any:  # noqa: ANN401
        """The transformers model."""
        return self.loaded.model

    @property
    def model_id(self) -> str:
        """The model as it was asked for."""
        return self.loaded.model_id

    @property
    def dtype(self) -> str:
        """Of weights and KV: ``float32`` or ``bfloat16``."""
        return self.loaded.dtype

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows."""
        return self.loaded.vocab_size

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a completion."""
        return self.loaded.eos_token_ids

    @property
    def max_model_len(self) -> int:
        """Maximum number of tokens of a sequence, prompt and completion together."""
        return self.loaded.max_model_len

    @property
    def config(self) -> EngineConfig:
        """How the engine runs."""
        return self.engine.config

    @property
    def kv_budget_bytes(self) -> int:
        """Maximum bytes of KV held at once."""
        return self.engine.store.budget_bytes

    @property
    def stats(self) -> EngineStats:
        """Measurements of the last call."""
        return self.engine.stats

    def get_tokenizer(self) -> Any:  # noqa: ANN401
        """The model's transformers tokenizer; a ``ConfigError`` if it came without one."""
        return self.prompt_encoder.require_tokenizer()

    def get_default_sampling_params(self) -> SamplingParams:
        """What a call without parameters takes: the model's own suggestions, and vLLM's defaults."""
        return self._default_params

    def decoder(self, *, skip_special_tokens: bool = True) -> Callable[[Sequence[int]], str] | None:
        """A function from token ids to text; None without a tokenizer."""
        return self.loaded.decoder(skip_special_tokens=skip_special_tokens)

    def encode(self, text: str | Sequence[str]) -> Any:  # noqa: ANN401
        """Token ids of a whole prompt, or of each of several, with the special tokens that belong to them.

        In vLLM ``encode`` is for models that pool; those are none of treeshare's.
        """
        if isinstance(text, (list, tuple)):
            return [self.prompt_encoder.encode(one) for one in text]
        return self.prompt_encoder.encode(text)  # type: ignore[arg-type]

    def use_adapter(self, requests: LoRARequests, num_prompts: int | None = None) -> None:
        """Merge the adapter that a call names into the weights, where it is the first one.

        Args:
            requests: As ``adapter_of`` takes them.
            num_prompts: Likewise.

        Raises:
            ConfigError: If the call names another one than those before, or none where they named one.
            ModelLoadError: If the adapter cannot be read.
        """
        asked = adapter_of(requests, num_prompts)
        if asked == self._adapter or (asked is None and not self._was_named):
            return
        if self._adapter is not None or not self._enable_lora:
            raise ConfigError.of(
                "lora_request",
                got=asked,
                expected=str(self._adapter) if self._adapter else "None, or LLM(..., enable_lora=True)",
                remedy="a model has one adapter for all prompts; load another LLM for another adapter",
            )
        assert asked is not None
        self.update_weights(weights_with_adapter(self.loaded, asked))
        self._adapter, self._was_named = asked, True

    def update_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Change weights, also while ``stream`` is suspended; see ``Engine.update_weights``."""
        self.engine.update_weights(weights)

    def request(self, prompt: Prompt, params: SamplingParams, *, first_index: int = 0) -> Request:
        """One request for the engine, for completions from ``first_index`` on."""
        return one_request(self.prompt_encoder.parse(0, prompt)[1], params, self.seed, first_index)

    def requests(self, prompts: Sequence[Sequence[int]], params: Params) -> list[Request]:
        """Requests for the engine; their random numbers depend on the prompt, not on the order."""
        return checked_requests(prompts, params, self.seed)

    def close(self) -> None:
        """Free the KV of all that runs; what is asked for later begins anew."""
        self.engine.clear()

    if not TYPE_CHECKING:  # a type checker knows which there are

        def __getattr__(self, name: str) -> Never:
            """Says what to use instead of a method that only vLLM's class has."""
            raise AttributeError(absence("LLM.", name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
