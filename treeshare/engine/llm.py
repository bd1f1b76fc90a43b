"""``LLM``: vLLM's offline interface on a tree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from treeshare.config import MAX_THREADS, AttentionMode, EngineConfig, FoldCost, Sharing, require_int
from treeshare.devices import resolve_device
from treeshare.engine.chat import ChatOptions, Conversations
from treeshare.engine.engine import Engine
from treeshare.engine.fold_cost import fold_cost_of
from treeshare.engine.generation import GenerateCall, OnCompletion, progress_bar, with_progress
from treeshare.engine.outputs import CompletionOutput, RequestOutput, completion_output
from treeshare.engine.prompts import Prompt, PromptEncoder, Prompts, items_of
from treeshare.engine.requests import Params, checked_requests, make_requests, one_request
from treeshare.engine.scoring import Pair, Score, score
from treeshare.engine.search import TokenSearch
from treeshare.models import load_model
from treeshare.native import warn_where_unused

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Generator, Mapping, Sequence

    from treeshare.engine.sequence import Completion, Request
    from treeshare.engine.stats import EngineStats
    from treeshare.engine.streaming import StreamOutput
    from treeshare.sampling import SamplingParams

__all__ = ["LLM", "OnCompletion"]


def _use(seed: int, threads: int | None) -> None:
    """Check both, and set the number of threads."""
    require_int("seed", seed, low=0, high=2**64 - 1)
    if threads is not None:
        require_int("threads", threads, low=1, high=MAX_THREADS)
        torch.set_num_threads(threads)


class LLM:
    """A model that generates many completions for many prompts as one tree.

    Args:
        model: An embedded name (``smollm2-135m``), a folder, a ``.gguf`` file or a hub id.
        dtype: ``auto`` (the model's own, see ``load_model``), ``float32`` or ``bfloat16``.
        quantization: ``int8``, on the CPU, or None; see ``load_model``.
        device: As ``resolve_device`` takes it; on a CUDA device nothing was ever measured.
        sharing: ``tree``, ``one-level`` or ``none``; see ``EngineConfig``.
        seed: Run seed, for requests whose ``SamplingParams`` have none.
        max_num_seqs: Maximum number of completions decoded at once.
        kv_budget_bytes: Maximum bytes of KV held at once; half of the free memory by default.
        threads: Torch threads; torch's own choice by default.
        backend: Of attention; see ``EngineConfig``.
        attention: ``off`` skips attention, for benchmarks only.
        lazy_divergence: Completions whose tokens are identical so far share one row.
        profile: Measure where a run's time goes; see ``EngineConfig``.
        keep_nodes: Prompts' KV stays for later calls, as far as the budget holds it.
        logits_processors: Classes, or their names, ``module:Class``; see ``sampling.logits_processor``.
        reasoning_parser: How the model marks its reasoning; see ``text.reasoning.reasoning_tags``.
        fold_cost: Costs that decide which shared segments become nodes; measured by default.

    Attributes:
        loaded: The model and what is known of it.
        engine: Runs requests, for callers that make them themselves.
        prompt_encoder: Makes token ids of texts and conversations.

    Raises:
        ConfigError: If an argument is out of range.
        ModelLoadError, UnsupportedModelError: As ``load_model``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "auto",
        quantization: str | None = None,
        device: str = "auto",
        sharing: Sharing = "tree",
        seed: int = 0,
        max_num_seqs: int = 256,
        kv_budget_bytes: int | None = None,
        threads: int | None = None,
        attention: AttentionMode = "on",
        backend: str = "auto",
        lazy_divergence: bool = True,
        profile: bool = False,
        keep_nodes: bool = False,
        logits_processors: Sequence[type | str] = (),
        reasoning_parser: str = "auto",
        fold_cost: FoldCost | None = None,
    ) -> None:
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            kv_budget_bytes=kv_budget_bytes,
            sharing=sharing,
            attention=attention,
            backend=backend,
            lazy_divergence=lazy_divergence,
            profile=profile,
            keep_nodes=keep_nodes,
            reasoning_parser=reasoning_parser,
        )
        _use(seed, threads)
        self.seed = seed
        warn_where_unused()
        self.loaded = load_model(model, dtype, resolve_device(device, quantization), quantization)
        config = replace(config, fold_cost=fold_cost or fold_cost_of(self.loaded, config))
        self.engine = Engine(self.loaded, config, logits_processors=logits_processors)
        self.prompt_encoder = PromptEncoder(self.loaded.tokenizer, self.loaded.model_id)

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
        """See ``LoadedModel``."""
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

    def decoder(self, *, skip_special_tokens: bool = True) -> Callable[[Sequence[int]], str] | None:
        """A function from token ids to text; None without a tokenizer."""
        return self.loaded.decoder(skip_special_tokens=skip_special_tokens)

    def encode(self, text: str) -> list[int]:
        """Token ids of a whole prompt, with the special tokens that the model's tokenizer adds."""
        return self.prompt_encoder.encode(text)

    def generate(
        self,
        prompts: Prompts,
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        on_completion: OnCompletion | None = None,
    ) -> list[RequestOutput]:
        """Generate ``n`` completions of each prompt.

        A completion's bits depend on model, prompt, sampling parameters, seed, problem id and index alone;
        ``ModelRunner.company_reason`` says where that does not hold. A prompt that comes twice is a second
        problem and gets other completions.

        Args:
            prompts: One prompt or several: text, ``{"prompt": text}``, ``{"prompt_token_ids": ids}`` or token
                ids.
            sampling_params: For all prompts, or one for each; ``SamplingParams()`` by default.
            use_tqdm: Show progress on stderr.
            on_completion: Called with the number of a prompt, as text, and each completion of it as it
                finishes. A returned reason cancels the prompt's other completions and becomes
                ``RequestOutput.ended``.

        Returns one output per prompt, in order.

        Raises as ``Engine.check``; nothing has run.
        """
        call = self._call(prompts, sampling_params, on_completion)
        completions = self.engine.run(call.requests)
        return call.collect(with_progress(completions, call.requests, self.engine, enabled=use_tqdm))

    def stream(
        self,
        prompts: Prompts,
        sampling_params: Params = None,
        *,
        tokens: bool = False,
        on_completion: OnCompletion | None = None,
    ) -> Generator[StreamOutput, None, None]:
        """As ``generate``, but yields completions as they finish; leaving it early frees everything.

        Args:
            prompts: As for ``generate``.
            sampling_params: Likewise.
            tokens: Whether to yield each token, too, as it is drawn.
            on_completion: As for ``generate``.

        Raises as ``generate``.
        """
        call = self._call(prompts, sampling_params, on_completion)
        yield from call.stream(self.engine.run_steps(call.requests), tokens=tokens)

    def chat(
        self,
        messages: Conversations,
        sampling_params: Params = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[RequestOutput]:
        """Generate for one conversation or several: the model's chat template makes the prompts.

        ``messages``: a list of ``{"role", "content"}``, or a list of such; the rest as in ``ChatOptions``.

        Raises as ``generate``; also a ``ConfigError`` if there is no template, or it refuses the messages.
        """
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
        )
        prompts = self.prompt_encoder.chat_prompts(messages, options)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def score(self, pairs: Sequence[Pair], *, use_tqdm: bool = True) -> list[Score]:
        """How likely given continuations are: a score per pair, each shared segment computed once.

        A score depends on the model and its pair, not on the other pairs or their order. Runs on the whole
        tree whatever ``sharing`` is; KV that earlier calls left is dropped. Raises as ``scoring.score``.

        Args:
            pairs: Token ids of a context, at least one, and of a continuation; together at most one more than
                the model's length.
            use_tqdm: Show progress on stderr.
        """
        given = items_of("pairs", pairs, "a list of pairs of a context and a continuation")
        with progress_bar("Scores", len(given), enabled=use_tqdm) as bar:
            return score(self.engine, given, bar.update)

    def search(self, prompt: Prompt, *, max_tokens: int = 256) -> TokenSearch:
        """Decode by hand: fork, extend and drop branches of one prompt; see ``TokenSearch``."""
        return TokenSearch(self.engine, self.prompt_encoder.parse(0, prompt)[1], max_tokens)

    def update_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Change weights, also while ``stream`` is suspended; see ``Engine.update_weights``."""
        self.engine.update_weights(weights)

    def request(self, prompt: Prompt, params: SamplingParams, *, first_index: int = 0) -> Request:
        """One request for the engine, for completions from ``first_index`` on."""
        return one_request(self.prompt_encoder.parse(0, prompt)[1], params, self.seed, first_index)

    def requests(self, prompts: Sequence[Sequence[int]], params: Params) -> list[Request]:
        """Requests for the engine; their random numbers depend on the prompt, not on the order."""
        return checked_requests(prompts, params, self.seed)

    def output(self, completion: Completion) -> CompletionOutput:
        """A completion as ``generate`` returns it."""
        return completion_output(completion, self.loaded.detokenizer, self.engine.reasoning.tags)

    def _call(self, prompts: Prompts, params: Params, on_completion: OnCompletion | None) -> GenerateCall:
        parsed = self.prompt_encoder.parse_all(prompts)
        requests = make_requests([token_ids for _, token_ids in parsed], params, self.seed)
        return GenerateCall(
            parsed, requests, self.output, on_completion, self.engine.cancel, self.loaded.detokenizer
        )
