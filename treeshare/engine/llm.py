"""``LLM``: vLLM's offline interface on a tree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.config import AttentionMode, EngineConfig, FoldCost, Sharing, require_int, resolve_device
from treeshare.engine.engine import Engine
from treeshare.engine.fold_cost import fold_cost_here
from treeshare.engine.outputs import CompletionOutput, Logprob, RequestOutput
from treeshare.engine.prompts import Message, Prompt, as_list, per_prompt, shared_tokens, token_ids_of
from treeshare.engine.scoring import Pair, Score, score
from treeshare.engine.search import TokenSearch
from treeshare.engine.sequence import Request
from treeshare.engine.streaming import FinishedOutput, StepEvents, StreamOutput
from treeshare.errors import ConfigError
from treeshare.models import load_model
from treeshare.sampling import SamplingParams, problem_key

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from treeshare.engine.sequence import Completion
    from treeshare.engine.stats import EngineStats


OnCompletion = Callable[[str, CompletionOutput], str | None]
"""Sees a finished completion and the number of its prompt; a reason in return ends the prompt's others."""


class LLM:
    """A model that generates many completions for many prompts as one tree.

    Args:
        model: An embedded name (``smollm2-135m``), a folder, a ``.gguf`` file or a hub id.
        dtype: ``auto`` (the model's own), ``float32`` or ``bfloat16``.
        device: ``auto`` (a CUDA device where there is one and Triton to use it, else the CPU), ``cpu``,
            ``cuda`` or ``cuda:N``. On a CUDA device nothing was ever measured.
        sharing: ``tree``, ``one-level`` or ``none``; see ``EngineConfig``.
        seed: Run seed, for requests whose ``SamplingParams`` have none.
        max_num_seqs: Most completions decoded at once.
        kv_budget_bytes: Most bytes of KV held at once; half of the free memory by default.
        threads: Torch threads; torch's own choice by default.
        backend: Of attention; see ``EngineConfig``.
        attention: ``off`` skips attention, for benchmarks only.
        lazy_divergence: Completions whose tokens are identical so far share one row.
        profile: Measure where a run's time goes; see ``EngineConfig``.
        keep_nodes: Prompts' KV stays for later calls, as far as the budget holds it.
        fold_cost: What decides which shared segments are worth a node; by default measured on this machine,
            once for a model's shape.

    Raises:
        ConfigError: If an argument is out of range.
        ModelLoadError: If the model cannot be found or read.
        UnsupportedModelError: If the model needs what treeshare does not implement.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        dtype: str = "auto",
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
        )
        require_int("seed", seed, low=0, high=2**64 - 1)
        if threads is not None:
            require_int("threads", threads, low=1)
            torch.set_num_threads(threads)
        self.seed = seed
        self.loaded = load_model(model, dtype, resolve_device(device))
        if fold_cost is None:
            loaded = self.loaded
            fold_cost = fold_cost_here(loaded.geometry, loaded.model.config, config, loaded.device)
        self.engine = Engine(self.loaded, replace(config, fold_cost=fold_cost))

    @property
    def stats(self) -> EngineStats:
        """What the last call measured of itself."""
        return self.engine.stats

    def get_tokenizer(self) -> Any:  # noqa: ANN401
        """The model's transformers tokenizer.

        Raises:
            ConfigError: If the model came without one.
        """
        if self.loaded.tokenizer is None:
            raise ConfigError(
                f"tokenizer: {self.loaded.model_id} has none; give prompt_token_ids, and no stop strings"
            )
        return self.loaded.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        on_completion: OnCompletion | None = None,
    ) -> list[RequestOutput]:
        """Generate ``n`` completions of each prompt.

        A completion depends on the model, its prompt, its parameters, the seed and its index, not on the
        other prompts or their order. A prompt that comes twice counts as a second problem and gets other
        completions.

        Args:
            prompts: One prompt or several: text, ``{"prompt": text}``, ``{"prompt_token_ids": ids}`` or token
                ids.
            sampling_params: For all prompts, or one for each; ``SamplingParams()`` by default.
            use_tqdm: Show progress on stderr.
            on_completion: Called with each completion as it finishes, and the number of its prompt as text.
                A reason in return ends the prompt's other completions: they do not come, and
                ``RequestOutput.ended`` is the reason.

        Returns:
            One output per prompt, in order.

        Raises:
            ConfigError: If a prompt or parameter is out of range; nothing has run.
            BudgetError: If the KV budget does not hold the longest prompt with one completion.
        """
        reasons: dict[str, str] = {}
        parsed = [self._parse(i, prompt) for i, prompt in enumerate(as_list(prompts))]
        requests = self.requests([ids for _, ids in parsed], sampling_params)
        completions: list[list[CompletionOutput]] = [[] for _ in requests]
        for completion in self._progress(self.engine.run(requests), requests, use_tqdm):
            output = self.output(completion)
            completions[completion.request_index].append(output)
            self._ask(on_completion, completion.request_index, output, reasons)
        shared = shared_tokens([request.prompt_token_ids for request in requests])
        return [
            RequestOutput(
                request_id=str(i),
                prompt=text,
                prompt_token_ids=ids,
                outputs=sorted(outputs, key=lambda output: output.index),
                finished=True,
                num_cached_tokens=num_shared,
                ended=reasons.get(str(i)),
            )
            for i, ((text, ids), outputs, num_shared) in enumerate(
                zip(parsed, completions, shared, strict=True)
            )
        ]

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
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

        Raises:
            ConfigError: As ``generate``.
            BudgetError: As ``generate``.
        """
        parsed = [self._parse(i, prompt) for i, prompt in enumerate(as_list(prompts))]
        requests = self.requests([ids for _, ids in parsed], sampling_params)
        decode = self.loaded.decoder(skip_special_tokens=True)
        events = StepEvents(self.output, decode, lambda _: tokens)
        reasons: dict[str, str] = {}
        for result in self.engine.run_steps(requests):
            for index, output in events.of(result):
                if isinstance(output, FinishedOutput):
                    self._ask(on_completion, index, output.completion, reasons)
                yield output

    def _ask(
        self,
        on_completion: OnCompletion | None,
        index: int,
        output: CompletionOutput,
        reasons: dict[str, str],
    ) -> None:
        """End a request's other completions if the caller gives a reason; the first reason is kept."""
        reason = on_completion(str(index), output) if on_completion else None
        if reason:
            reasons.setdefault(str(index), reason)
            self.engine.cancel(index)

    def update_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Change weights, also while ``stream`` is suspended; see ``Engine.update_weights``.

        Raises:
            ConfigError: If a name is not known or a shape differs; nothing was changed.
        """
        self.engine.update_weights(weights)

    def score(self, pairs: Sequence[Pair], *, use_tqdm: bool = True) -> list[Score]:
        """How likely given continuations are: log-probabilities per token, each shared segment computed once.

        A score depends on the model and its pair, not on the other pairs or their order. Runs on the whole
        tree whatever ``sharing`` is; KV that earlier calls left is dropped.

        Args:
            pairs: Token ids of a context, at least one, and of a continuation; together at most one more than
                the model's length.
            use_tqdm: Show progress on stderr.

        Returns:
            One score per pair, in order.

        Raises:
            ConfigError: If a pair is out of range, or other requests are running.
            DataError: If token ids are not flat rows of integers.
            BudgetError: If the KV budget does not hold the longest pair alone.
        """
        from tqdm.auto import tqdm

        with tqdm(total=len(pairs), desc="Scores", unit="", dynamic_ncols=True, disable=not use_tqdm) as bar:
            return score(self.engine, pairs, bar.update)

    def search(self, prompt: Prompt, *, max_tokens: int = 256) -> TokenSearch:
        """Decode by hand: fork, extend and drop branches of one prompt; a context manager.

        Args:
            prompt: As for ``generate``.
            max_tokens: Most tokens of a branch.

        Raises:
            ConfigError: If the prompt is out of range, or other requests are running.
            BudgetError: If the KV budget does not hold the prompt.
        """
        return TokenSearch(self.engine, self._parse(0, prompt)[1], max_tokens)

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        chat_template: str | None = None,
    ) -> list[RequestOutput]:
        """Generate for one conversation or several: the model's chat template makes the prompts.

        Args:
            messages: A conversation, a list of ``{"role", "content"}``; or a list of conversations.
            sampling_params: As for ``generate``.
            use_tqdm: As for ``generate``.
            add_generation_prompt: End the prompt where the assistant's answer begins.
            chat_template: Instead of the model's own.

        Raises:
            ConfigError: As ``generate``; also if there is no chat template.
        """
        tokenizer = self.get_tokenizer()
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        if chat_template is None and getattr(tokenizer, "chat_template", None) is None:
            raise ConfigError(f"chat_template: {self.loaded.model_id} has none; give one, or use generate")
        prompts = []
        for conversation in conversations:
            text = tokenizer.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                chat_template=chat_template,
            )
            prompts.append({"prompt": text, "prompt_token_ids": self._encode(text, special_tokens=False)})
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def encode(self, text: str) -> list[int]:
        """Token ids of a whole prompt, with the special tokens that the model's tokenizer adds."""
        return self._encode(text, special_tokens=True)

    def _encode(self, text: str, *, special_tokens: bool) -> list[int]:
        return list(self.get_tokenizer()(text, add_special_tokens=special_tokens)["input_ids"])

    def _parse(self, index: int, prompt: Prompt) -> tuple[str | None, list[int]]:
        """A prompt's text, if it has one, and its tokens."""
        if isinstance(prompt, str):
            return prompt, self.encode(prompt)
        if isinstance(prompt, Mapping):
            text = prompt.get("prompt")
            if "prompt_token_ids" in prompt:
                return text, token_ids_of(index, prompt["prompt_token_ids"])
            if isinstance(text, str):
                return text, self.encode(text)
        elif isinstance(prompt, (Sequence, np.ndarray)):
            return None, token_ids_of(index, prompt)
        raise ConfigError.of(
            f"prompts[{index}]",
            got=prompt,
            expected='text, {"prompt": ...}, {"prompt_token_ids": ...} or token ids',
        )

    def request(self, prompt: Prompt, params: SamplingParams, *, first_index: int = 0) -> Request:
        """One request for the engine, for completions from ``first_index`` on.

        Raises:
            ConfigError: If the prompt is in no known form.
        """
        (request,) = self.requests([self._parse(0, prompt)[1]], params)
        return replace(request, completion_indices=range(first_index, first_index + params.n))

    def requests(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Request]:
        """Requests for the engine; their random numbers depend on the prompt, not on its place."""
        seen = Counter[bytes]()
        requests = []
        for ids, one in zip(prompts, per_prompt(params, len(prompts)), strict=True):
            content = np.asarray(ids, dtype="<i8").tobytes()
            key = problem_key(content + seen[content].to_bytes(8, "little"))
            seen[content] += 1
            seed = self.seed if one.seed is None else one.seed
            requests.append(
                Request(
                    prompt_token_ids=ids,
                    params=one,
                    problem_key=key,
                    seed=seed,
                    completion_indices=range(one.n),
                )
            )
        return requests

    def _progress(
        self, completions: Iterable[Completion], requests: list[Request], use_tqdm: bool
    ) -> Iterable[Completion]:
        if not use_tqdm:
            yield from completions
            return
        from tqdm.auto import tqdm

        total = sum(len(request.completion_indices) for request in requests)
        with tqdm(total=total, desc="Completions", unit="", dynamic_ncols=True) as bar:
            for completion in completions:
                bar.update()
                bar.set_postfix_str(f"{self.stats.tokens_per_s:.0f} tokens/s")
                yield completion

    def output(self, completion: Completion) -> CompletionOutput:
        """What is returned of a completion."""
        logprobs = None
        if completion.logprobs is not None:
            logprobs = [
                {
                    e.token_id: Logprob(logprob=e.logprob, rank=e.rank, decoded_token=self._text(e.token_id))
                    for e in at
                }
                for at in completion.logprobs
            ]
        return CompletionOutput(
            index=completion.completion_index,
            text=completion.text,
            token_ids=completion.token_ids,
            cumulative_logprob=completion.cumulative_logprob,
            logprobs=logprobs,
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
            weight_versions=completion.weight_versions,
        )

    def _text(self, token_id: int) -> str | None:
        tokenizer = self.loaded.tokenizer
        return None if tokenizer is None else tokenizer.decode([token_id])
