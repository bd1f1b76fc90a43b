"""Completions for TRL's ``GRPOTrainer``: its generation batch as one tree, with the trainer's own weights.

    GRPOTrainer(model=MODEL, rollout_func=TreeRollout(LLM(MODEL)), ...)

Written against TRL 1.16, whose trainer hands over a prompt once for each completion that it wants of it, and
takes one completion for each, in order; its documentation says that each prompt comes once.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from treeshare.errors import ConfigError
from treeshare.models.weights import require_all_weights
from treeshare.sampling import SamplingParams, problem_key
from treeshare.sampling.sampler import drawn_logprobs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from treeshare.engine.llm import LLM
    from treeshare.engine.sequence import Request
    from treeshare.engine.sequence import Sequence as Row
    from treeshare.engine.step import StepResult
    from treeshare.sampling.sampler import RowSpec

Key = tuple[int, int]
"""A request and one of its completions."""


class TreeRollout:
    """A ``rollout_func`` that generates as one tree, with the trainer's weights of the current step.

    The model that generates is a copy of its own: the trainer's may be in training mode, on another device,
    in another dtype. Sampling parameters are the trainer's; names in its ``generation_kwargs`` are those of
    ``SamplingParams``.

    Args:
        llm: The model that the trainer trains, loaded once more.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._synced: tuple[int, int] | None = None
        self._num_calls = 0

    def __call__(self, prompts: Sequence[Any], trainer: Any) -> dict[str, list[list[Any]]]:  # noqa: ANN401
        """Generate what the trainer asks for.

        Args:
            prompts: Texts or conversations, as the trainer's data has them.
            trainer: The ``GRPOTrainer``.

        Returns:
            ``prompt_ids``, ``completion_ids`` and ``logprobs``, a list for each completion: log-probabilities
            of the distribution that its tokens were drawn from, temperature and filters included.

        Raises:
            ConfigError: If the model is sharded, has adapters or is another than the one that generates, or
                parameters are out of range.
        """
        self._take_weights(trainer)
        ids = tokenize(prompts, trainer)
        counts = Counter(map(tuple, ids))
        each = 1
        if len(counts) == len(ids) and trainer.accelerator.num_processes == 1:  # as TRL documents it
            each = trainer.num_generations if trainer.model.training else trainer.num_generations_eval
        base = sampling_params(trainer, self._seed(trainer))
        params = [SamplingParams(**base | {"n": count * each}) for count in counts.values()]
        requests = self._llm.requests([list(prompt) for prompt in counts], params)
        tokens, logprobs = _generate(self._llm, requests)
        places = {prompt: place for place, prompt in enumerate(counts)}
        seen = Counter[int]()
        keys: list[Key] = []
        for prompt in ids:
            place = places[tuple(prompt)]
            keys += [(place, seen[place] + i) for i in range(each)]
            seen[place] += each
        return {
            "prompt_ids": [list(requests[place].prompt_token_ids) for place, _ in keys],
            "completion_ids": [tokens[key] for key in keys],
            "logprobs": [logprobs[key] for key in keys],
        }

    def _take_weights(self, trainer: Any) -> None:  # noqa: ANN401
        now = id(trainer), int(trainer.state.global_step)
        if now == self._synced:
            self._num_calls += 1
            return
        kind = str(trainer.accelerator.distributed_type).rsplit(".", 1)[-1]
        if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise ConfigError.of("trainer", got=f"weights sharded by {kind}", expected="whole weights")
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        if getattr(model, "peft_config", None):
            model = _merged(model)
        weights = model.state_dict()
        require_all_weights(self._llm.model, weights)
        self._llm.update_weights(weights)
        self._synced, self._num_calls = now, 0

    def _seed(self, trainer: Any) -> int:  # noqa: ANN401
        """Other random numbers for each call and each process, the same ones when training is repeated."""
        place = (
            trainer.args.seed,
            trainer.state.global_step,
            self._num_calls,
            trainer.accelerator.process_index,
        )
        return problem_key("/".join(map(str, place)).encode())


def _merged(model: Any) -> Any:  # noqa: ANN401
    """A copy of a PEFT model with its adapters merged by PEFT's own arithmetic; the trainer's stays apart."""
    if not hasattr(model, "merge_and_unload"):
        kinds = ", ".join(str(config.peft_type) for config in model.peft_config.values())
        raise ConfigError.of(
            "trainer", got=f"adapters that cannot be merged ({kinds})", expected="LoRA or its kind"
        )
    return copy.deepcopy(model).merge_and_unload(safe_merge=True)


def tokenize(prompts: Sequence[Any], trainer: Any) -> list[list[int]]:  # noqa: ANN401
    """Token ids of each prompt, as the trainer would make them."""
    if isinstance(prompts[0], str):
        ids = trainer.processing_class(text=list(prompts))["input_ids"]
    else:
        ids = trainer.processing_class.apply_chat_template(
            conversation=list(prompts),
            tools=trainer.tools or None,
            chat_template=trainer.chat_template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            **trainer.chat_template_kwargs,
        )["input_ids"]
    return [list(prompt) for prompt in ids]


def sampling_params(trainer: Any, seed: int) -> dict[str, Any]:  # noqa: ANN401
    """The trainer's sampling parameters by ``SamplingParams``' names.

    Raises:
        ConfigError: If ``generation_kwargs`` has a name that is none of them, or ``min_tokens``.
    """
    params = {
        "temperature": trainer.temperature,
        "top_p": trainer.top_p,
        "top_k": trainer.top_k,
        "min_p": trainer.min_p or 0.0,
        "repetition_penalty": trainer.repetition_penalty,
        "max_tokens": trainer.max_completion_length,
        "stop_token_ids": list(trainer.eos_token_ids),
        "seed": seed,
    } | dict(trainer.args.generation_kwargs or {})
    if SamplingParams.from_dict(params).min_tokens:
        raise ConfigError.of("generation_kwargs: min_tokens", got=params["min_tokens"], expected="0")
    return params


def _generate(llm: LLM, requests: Sequence[Request]) -> tuple[dict[Key, list[int]], dict[Key, list[float]]]:
    """Tokens of each completion, and their log-probabilities in the distribution they were drawn from."""
    rows: dict[Key, tuple[Tensor, RowSpec]] = {}
    tokens: dict[Key, list[int]] = {}
    logprobs: dict[Key, list[float]] = {}

    def observe(sequence: Row, logits: Tensor) -> None:
        """Keep what a row's next token is drawn from until the step is over."""
        spec = replace(sequence.spec(), generated=list(sequence.token_ids))
        for index in sequence.completions:
            rows[sequence.request_index, index] = (logits, spec)

    for result in llm.engine.run_steps(requests, observe=observe):
        result.raise_failed()
        drawn = _drawn(result)
        if drawn:
            values = drawn_logprobs(
                torch.stack([rows[key][0] for key in drawn]),
                [rows[key][1] for key in drawn],
                np.array(list(drawn.values()), dtype=np.int64),
            )
            for key, value in zip(drawn, values.tolist(), strict=True):
                logprobs.setdefault(key, []).append(value)
        rows.clear()
        for completion in result.finished:
            tokens[completion.request_index, completion.completion_index] = completion.token_ids
    return tokens, logprobs


def _drawn(result: StepResult) -> Mapping[Key, int]:
    """The token that each completion got in a step."""
    drawn = {(s.request_index, index): s.token_ids[-1] for s in result.drawn for index in s.completions}
    return drawn | {
        (completion.request_index, completion.completion_index): completion.token_ids[-1]
        for completion in result.finished
    }
