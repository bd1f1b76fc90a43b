"""``LLM``: vLLM's offline interface on a tree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from treeshare.config import MAX_THREADS, AttentionMode, EngineConfig, FoldCost, Sharing, require_int
from treeshare.devices import resolve_device
from treeshare.engine.beams import BeamSearchOutput, BeamSearchParams, beams_of_prompt, require_beams
from treeshare.engine.chat import ChatOptions, Conversations
from treeshare.engine.engine import Engine
from treeshare.engine.fold_cost import fold_cost_of
from treeshare.engine.generation import GenerateCall, OnCompletion, UseTqdm, progress_bar, with_progress
from treeshare.engine.logs import log_loaded
from treeshare.engine.opened_model import OpenedModel
from treeshare.engine.outputs import CompletionOutput, RequestOutput, completion_output
from treeshare.engine.prompts import Prompt, Prompts, items_of
from treeshare.engine.requests import Params, make_requests
from treeshare.engine.scoring import Pair, Score, score
from treeshare.engine.search import TokenSearch
from treeshare.models import ModelExtras, load_model
from treeshare.native import warn_where_unused
from treeshare.sampling import suggestions
from treeshare.vllm_names import own_names, refuse_others

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Mapping, Sequence

    from torch import nn

    from treeshare.engine.lora import LoRARequests
    from treeshare.engine.sequence import Completion
    from treeshare.engine.streaming import StreamOutput

__all__ = ["LLM", "OnCompletion"]


def _use(seed: int | None, threads: int | None) -> int:
    """Check both, and set the number of threads; the seed, 0 for None."""
    seed = 0 if seed is None else seed
    require_int("seed", seed, low=0, high=2**64 - 1)
    if threads is not None:
        require_int("threads", threads, low=1, high=MAX_THREADS)
        torch.set_num_threads(threads)
    return seed


class LLM(OpenedModel):
    """A model that generates many completions for many prompts as one tree.

    Args:
        model: An embedded name (``smollm2-135m``), a folder, a ``.gguf`` file, a hub id, or a transformers
            model in memory, whose weights are shared and not changed.
        dtype: ``auto`` (the model's own, see ``load_model``), ``float32`` or ``bfloat16``, also as torch's.
        quantization: ``int8``, on the CPU, or None; see ``load_model``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; CUDA devices were never tried.
        sharing: ``tree``, ``one-level`` or ``none``; see ``EngineConfig``.
        seed: For requests whose ``SamplingParams`` have none; None is 0.
        max_num_seqs: Maximum number of completions decoded at once, the rows of a step; None is 256.
        kv_budget_bytes: Maximum bytes of KV held at once; half of the free memory by default.
        threads: Torch threads; torch's own choice by default.
        backend: The implementation of attention; see ``EngineConfig``.
        attention: ``off`` skips attention, for benchmarks only.
        lazy_divergence: Completions whose tokens are identical so far share one row.
        profile: Measure where a run's time goes; see ``EngineConfig``.
        keep_nodes: Keep the KV of prompts for later calls, as long as the budget allows.
        logits_processors: Classes, or their names, ``module:Class``; see ``sampling.logits_processor``.
        reasoning_parser: How the model marks its reasoning; see ``text.reasoning.reasoning_tags``.
        fold_cost: Costs that decide which shared segments become nodes; measured by default.
        max_model_len: Maximum tokens of a prompt with its completion; see ``load_model``.
        tokenizer: A folder, a hub id or a transformers tokenizer; by default the model's own.
        revision: Branch, tag or commit of a hub id.
        chat_template: A Jinja template, or a file with one; by default the tokenizer's own.
        lora: A folder with a PEFT adapter, which is merged into the weights.
        enable_lora: Whether a call may name an adapter, which is then used by all later calls too.
        generation_config: Source of default parameters: ``auto`` (the model's), ``vllm`` (none) or a folder.
        override_generation_config: Values that replace those of that file.
        others: Other arguments of vLLM: accepted if they require nothing, else rejected with a remedy.

    Raises:
        ConfigError: If an argument is unknown or out of range.
        ModelLoadError, UnsupportedModelError: As ``load_model``.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | nn.Module,
        *,
        dtype: str | torch.dtype = "auto",
        quantization: str | None = None,
        device: str = "auto",
        sharing: Sharing = "tree",
        seed: int | None = 0,
        max_num_seqs: int | None = 256,
        kv_budget_bytes: int | None = None,
        threads: int | None = None,
        attention: AttentionMode = "on",
        backend: str = "auto",
        lazy_divergence: bool = True,
        profile: bool = False,
        keep_nodes: bool = False,
        logits_processors: Sequence[type | str] | None = (),
        reasoning_parser: str | None = "auto",
        fold_cost: FoldCost | None = None,
        max_model_len: int | None = None,
        tokenizer: Any | None = None,  # noqa: ANN401
        revision: str | None = None,
        chat_template: str | os.PathLike[str] | None = None,
        lora: str | os.PathLike[str] | None = None,
        enable_lora: bool = False,
        generation_config: str | os.PathLike[str] = "auto",
        override_generation_config: Mapping[str, Any] | None = None,
        **others: object,
    ) -> None:
        refuse_others("LLM", others, own_names(LLM.__init__))
        config = EngineConfig(
            max_num_seqs=256 if max_num_seqs is None else max_num_seqs,
            kv_budget_bytes=kv_budget_bytes,
            sharing=sharing,
            attention=attention,
            backend=backend,
            lazy_divergence=lazy_divergence,
            profile=profile,
            keep_nodes=keep_nodes,
            reasoning_parser="" if reasoning_parser is None else reasoning_parser,
        )
        seed = _use(seed, threads)
        warn_where_unused()
        extras = ModelExtras(tokenizer=tokenizer, revision=revision, chat_template=chat_template, lora=lora)
        device = resolve_device(device, quantization)
        loaded = load_model(model, dtype, device, quantization, max_model_len, extras)
        suggested = suggestions(generation_config, loaded.suggested, override_generation_config)
        engine = Engine(
            loaded,
            replace(config, fold_cost=fold_cost or fold_cost_of(loaded, config)),
            logits_processors=() if logits_processors is None else logits_processors,
        )
        super().__init__(engine, seed, suggested, enable_lora=enable_lora)
        log_loaded(loaded, engine.runner, engine.config.max_num_seqs)

    def generate(
        self,
        prompts: Prompts | None = None,
        sampling_params: Params = None,
        *,
        use_tqdm: UseTqdm = True,
        on_completion: OnCompletion | None = None,
        lora_request: LoRARequests = None,
        **others: object,
    ) -> list[RequestOutput]:
        """Generate ``n`` completions of each prompt.

        A completion's bits depend on model, prompt, sampling parameters, seed, problem id and index alone;
        ``ModelRunner.company_reason`` says when this does not hold. If a prompt occurs twice, the two are
        different problems and get different completions.

        Args:
            prompts: One prompt or several: text, ``{"prompt": text}``, ``{"prompt_token_ids": ids}`` or token
                ids.
            sampling_params: For all prompts, or one for each; ``get_default_sampling_params()`` by default.
            use_tqdm: Whether to show progress on stderr; or a function that makes a bar, like ``tqdm``.
            on_completion: Called with the prompt's number, as text, and a completion, whenever one finishes.
                If it returns a reason, the prompt's other completions are cancelled and the reason becomes
                ``RequestOutput.ended``.
            lora_request: Names the adapter of all prompts, with ``enable_lora``.
            others: Other arguments of vLLM, as for the class.

        Returns one output per prompt, in order.

        Raises as ``Engine.check``; nothing has run.
        """
        refuse_others("LLM.generate", others, own_names(LLM.generate))
        call = self._call(prompts, sampling_params, on_completion)
        self.use_adapter(lora_request, len(call.requests))
        completions = self.engine.run(call.requests)
        return call.collect(with_progress(completions, call.requests, self.engine, use_tqdm))

    def stream(
        self,
        prompts: Prompts,
        sampling_params: Params = None,
        *,
        tokens: bool = False,
        on_completion: OnCompletion | None = None,
    ) -> Generator[StreamOutput, None, None]:
        """Like ``generate``, but yields each completion when it finishes; leaving early cancels the others.

        Args:
            prompts: As for ``generate``.
            sampling_params: Likewise.
            tokens: Whether to yield each token too, as soon as it is drawn.
            on_completion: As for ``generate``. Raises as it.
        """
        call = self._call(prompts, sampling_params, on_completion)
        yield from call.stream(self.engine.run_steps(call.requests), tokens=tokens)

    def chat(
        self,
        messages: Conversations,
        sampling_params: Params = None,
        use_tqdm: UseTqdm = True,
        lora_request: LoRARequests = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **others: object,
    ) -> list[RequestOutput]:
        """Generate for one conversation or several: the model's chat template makes the prompts.

        ``messages``: a list of ``{"role", "content"}``, or a list of such; the rest as in ``ChatOptions``.

        Raises as ``generate``; also a ``ConfigError`` if there is no template, or if it rejects the messages.
        """
        refuse_others("LLM.chat", others, own_names(LLM.chat))
        options = ChatOptions(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template=chat_template,
            chat_template_kwargs=chat_template_kwargs,
            tools=tools,
        )
        prompts = self.prompt_encoder.chat_prompts(messages, options)
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm, lora_request=lora_request)

    def score(self, pairs: Sequence[Pair], *, use_tqdm: UseTqdm = True) -> list[Score]:
        """Compute the log-probabilities of given continuations; shared prefixes are computed once.

        A score depends on the model and its pair, not on other pairs or their order. Prefixes are shared
        whatever ``sharing`` is. KV that earlier calls left is dropped. Raises as ``scoring.score``.

        Args:
            pairs: For each score, the token ids of a context (at least one) and of its continuation; together
                at most one token more than the model's maximum length.
            use_tqdm: Show progress on stderr.
        """
        given = items_of("pairs", pairs, "a list of pairs of a context and a continuation")
        with progress_bar("Scores", len(given), use_tqdm) as bar:
            return score(self.engine, given, bar.update)

    def search(self, prompt: Prompt, *, max_tokens: int = 256) -> TokenSearch:
        """Control decoding yourself: fork, extend and drop branches of a prompt; see ``TokenSearch``."""
        return TokenSearch(self.engine, self.prompt_encoder.parse(0, prompt)[1], max_tokens)

    def beam_search(
        self,
        prompts: Prompts,
        params: BeamSearchParams,
        lora_request: LoRARequests = None,
        *,
        use_tqdm: UseTqdm = False,
        **others: object,
    ) -> list[BeamSearchOutput]:
        """Beam search for each prompt, one prompt after the other; the beams equal those of transformers.

        KV that earlier calls left is dropped.

        Args:
            prompts: As for ``generate``.
            params: Number and length of the beams.
            lora_request: As for ``generate``.
            use_tqdm: As for ``generate``.
            others: Likewise.

        Raises:
            ConfigError: If a prompt is out of range, or other requests are running.
            BudgetError: If the KV budget does not hold a prompt with its beams.
        """
        refuse_others("LLM.beam_search", others, own_names(LLM.beam_search))
        require_beams(params)
        parsed = self.prompt_encoder.parse_all(prompts)
        self.use_adapter(lora_request, len(parsed))
        with progress_bar("Beams", len(parsed), use_tqdm) as bar:
            return [self._beams(token_ids, params, bar) for _, token_ids in parsed]

    def output(self, completion: Completion) -> CompletionOutput:
        """A completion as ``generate`` returns it."""
        return completion_output(completion, self.loaded.detokenizer, self.engine.reasoning.tags)

    def _beams(self, token_ids: list[int], params: BeamSearchParams, bar: Any) -> BeamSearchOutput:  # noqa: ANN401
        with TokenSearch(self.engine, token_ids, params.max_tokens) as search:
            found = beams_of_prompt(search, token_ids, params, self.eos_token_ids, self.decoder())
        bar.update()
        return found

    def _call(self, prompts: Prompts | None, params: Params, notify: OnCompletion | None) -> GenerateCall:
        parsed = self.prompt_encoder.parse_all(prompts)
        requests = make_requests(
            [token_ids for _, token_ids in parsed],
            self.get_default_sampling_params() if params is None else params,
            self.seed,
        )
        return GenerateCall(
            parsed, requests, self.output, notify, self.engine.cancel, self.loaded.detokenizer
        )
