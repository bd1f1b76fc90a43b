"""A model for Inspect: calls that run at the same time form one tree.

``inspect eval task.py --model treeshare/smollm2-135m``; arguments of the engine by ``-M``. The entry point
``treeshare`` of the group ``inspect_ai`` names this module, and Inspect may load it for any model: nothing
heavy is imported before a model is made.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Logprob,
    Logprobs,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    TopLogprob,
    modelapi,
)

from treeshare.errors import ConfigError
from treeshare.integrations.arguments import engine_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from treeshare.engine.outputs import CompletionOutput
    from treeshare.sampling import SamplingParams

_COLLECTING_S = 0.01
"""How long the first of several calls waits for the others: prompts that come together are computed first and
at once, those that come while others decode a few tokens a step."""

_MAX_TOKENS = 2048
_MAX_CONNECTIONS = 256

_NOT_IMPLEMENTED = (
    "best_of", "prompt_logprobs", "extra_body", "modalities", "effort", "reasoning_mode", "verbosity",
)  # fmt: skip
"""Settings that would change an answer."""

_LOOKUP_API_KEY = "__model_info_lookup__"
"""With which Inspect makes a second object only to ask its name: no weights are loaded for it."""

_OWN_ARGUMENTS = (
    "model_path", "chat_template", "enable_thinking", "chat_template_kwargs", "max_length", "device",
    "batch_size",
)  # fmt: skip

_PLAIN = (
    "temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed", "logit_bias",
)  # fmt: skip
"""Settings whose names are those of ``SamplingParams``."""


@modelapi(name="treeshare")
class TreeshareAPI(ModelAPI):  # type: ignore[misc]  # mypy does not follow into inspect_ai
    """A model that runs all calls under way as one tree.

    Epochs are equal calls with equal seeds: each gets completions of its own, counted from the first equal
    call that this object saw. So a set of calls always gives the same set of answers.

    Args:
        model_name: The model, as ``LLM`` takes it.
        base_url: Ignored.
        api_key: Ignored.
        config: Ignored: Inspect merges it into the configuration of each call.
        model_path: Instead of ``model_name``, for a folder.
        chat_template: Instead of the model's own.
        enable_thinking: Passed to the chat template.
        chat_template_kwargs: Passed to the chat template, too.
        max_length: Another name for ``max_model_len``.
        device: As for ``LLM``.
        batch_size: Ignored: rows and memory decide how many calls run at once.
        **options: ``arguments.ENGINE_ARGUMENTS`` as for ``LLM``; those of Inspect's ``hf`` and ``vllm``
            models where they have a meaning here, or ask for nothing.

    Raises:
        ConfigError: If an argument is unknown or out of range, or the model has no tokenizer.
        ModelLoadError: If the model cannot be found or read.
        UnsupportedModelError: If the model needs what treeshare does not implement.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (Inspect's own signature)
        *,
        model_path: str | None = None,
        chat_template: str | None = None,
        enable_thinking: bool | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        max_length: int | None = None,
        device: str = "auto",
        batch_size: int | str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(model_name=model_name, base_url=base_url, api_key=api_key, config=config)
        options = engine_options(options, _OWN_ARGUMENTS)
        if api_key == _LOOKUP_API_KEY:
            return
        from treeshare.engine.async_llm import AsyncLLM
        from treeshare.engine.chat import ChatOptions, check_template_kwargs

        check_template_kwargs(chat_template_kwargs)
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._chat = ChatOptions(
            chat_template=chat_template, chat_template_kwargs={**(chat_template_kwargs or {}), **thinking}
        )
        if max_length is not None:
            if "max_model_len" in options:
                raise ConfigError.of(
                    "max_length", got=max_length, expected="only one of max_length and max_model_len"
                )
            options["max_model_len"] = max_length
        self._llm = AsyncLLM(model_path or model_name, device=device, **options)
        tokenizer = self._llm.llm.get_tokenizer()
        self._has_template = bool(chat_template or getattr(tokenizer, "chat_template", None))
        self._num_asked = Counter[tuple[tuple[int, ...], str]]()
        self._gate: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def generate(
        self,
        input: Sequence[Any],
        tools: Sequence[Any],
        tool_choice: object,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answers to a conversation, ``config.num_choices`` of them.

        Args:
            input: The messages; only text.
            tools: Must be none.
            tool_choice: Without meaning where there are no tools.
            config: How to sample.

        Raises:
            ConfigError: If there are tools, media, or settings that are not implemented or out of range.
            BudgetError: If the KV budget does not hold the conversation with one answer.
        """
        if tools:
            raise ConfigError.of(
                "tools", got=f"{len(tools)}", expected="none: not implemented for this model"
            )
        from treeshare.engine.streaming import FinishedOutput

        started = time.perf_counter()
        params, ids = _params(config, self._llm.llm.suggested), self._prompt(input)
        key = (tuple(ids), repr(replace(params, n=1)))
        first_index = self._num_asked[key]
        self._num_asked[key] += params.n
        await self._others()
        found: dict[int, CompletionOutput] = {}
        async for output in self._llm.generate({"prompt_token_ids": ids}, params, first_index=first_index):
            if isinstance(output, FinishedOutput):
                found[output.completion.index] = output.completion
        completions = [found[index] for index in sorted(found)]
        num_output = sum(len(completion.token_ids) for completion in completions)
        return ModelOutput(
            model=self.model_name,
            choices=[self._choice(completion, len(ids), config) for completion in completions],
            usage=ModelUsage(
                input_tokens=len(ids), output_tokens=num_output, total_tokens=len(ids) + num_output
            ),
            time=time.perf_counter() - started,
        )

    async def _others(self) -> None:
        """Wait for other calls that come at about the same time."""
        loop = asyncio.get_running_loop()
        if self._gate is None or self._gate[0] is not loop or self._gate[1].is_set():
            self._gate = loop, asyncio.Event()
            loop.call_later(_COLLECTING_S, self._gate[1].set)
        await self._gate[1].wait()

    def _prompt(self, messages: Sequence[Any]) -> list[int]:
        """Token ids of a conversation, up to where the answer begins."""
        chat = [_chat_message(message) for message in messages]
        if not self._has_template:
            if any("reasoning_content" in message for message in chat):
                expected = "text: the model has no chat template that would show it"
                remedy = "--reasoning-history none leaves it out"
                raise ConfigError.of("input", got="reasoning", expected=expected, remedy=remedy)
            text = "".join(f"{message['role']}: {message['content']}\n" for message in chat) + "assistant:"
            whole: list[int] = self._llm.llm.encode(text)
            return whole
        ids: list[int] = self._llm.llm.prompt_encoder.chat_prompt(chat, self._chat)["prompt_token_ids"]
        return ids

    def _choice(
        self, completion: CompletionOutput, num_input: int, config: GenerateConfig
    ) -> ChatCompletionChoice:
        stop_reason = "stop"
        if completion.finish_reason == "length":
            total = num_input + len(completion.token_ids)
            stop_reason = "model_length" if total >= self._llm.max_model_len else "max_tokens"
        return ChatCompletionChoice(
            message=ChatMessageAssistant(
                content=_content(completion), model=self.model_name, source="generate"
            ),
            stop_reason=stop_reason,
            logprobs=_logprobs(completion, config.top_logprobs or 0),
        )

    def close(self) -> None:
        """Cancel what runs and end the engine's thread."""
        if self.api_key != _LOOKUP_API_KEY:
            self._llm.close()

    def max_tokens(self) -> int:
        """Maximum number of tokens of an answer where a task does not say."""
        return _MAX_TOKENS

    def max_connections(self) -> int:
        """Maximum number of calls at once where the user does not say: the default for a step's rows."""
        return _MAX_CONNECTIONS


def _chat_message(message: Any) -> dict[str, str]:  # noqa: ANN401
    """A message of Inspect's as chat templates take it: reasoning apart from the text.

    Raises:
        ConfigError: If it holds something else, or reasoning that nobody can read.
    """
    if message.role == "tool" or getattr(message, "tool_calls", None):
        raise ConfigError.of("input", got="calls of tools", expected="none: not implemented for this model")
    parts = [] if isinstance(message.content, str) else message.content
    kinds = {part.type for part in parts} - {"text", "reasoning"}
    if kinds:
        raise ConfigError.of("input", got=", ".join(sorted(kinds)), expected="text")
    thoughts = [part for part in parts if part.type == "reasoning"]
    if any(part.redacted for part in thoughts):
        remedy = "--reasoning-history none leaves it out"
        raise ConfigError.of("input", got="redacted reasoning", expected="reasoning as text", remedy=remedy)
    found = {"role": message.role, "content": message.text}
    if thoughts:
        found["reasoning_content"] = "\n".join(part.reasoning for part in thoughts)
    return found


def _content(completion: CompletionOutput) -> str | list[ContentReasoning | ContentText]:
    """An answer as Inspect has it: the reasoning a part of its own, which scorers do not see."""
    if completion.reasoning is None:
        return completion.text
    return [ContentReasoning(reasoning=completion.reasoning), ContentText(text=completion.answer)]


def _params(config: GenerateConfig, suggested: Mapping[str, Any] = MappingProxyType({})) -> SamplingParams:
    """Sampling parameters of a call.

    Args:
        config: What Inspect's user and the task say.
        suggested: What the model's ``generation_config.json`` does, where they say nothing.

    Raises:
        ConfigError: If a setting is not implemented or out of range.
    """
    from treeshare.sampling import SamplingParams

    asked = [name for name in _NOT_IMPLEMENTED if getattr(config, name, None) not in (None, {}, [])]
    if getattr(config, "reasoning_effort", None) not in (None, "none"):
        expected = "None: give the chat template what it reads, by chat_template_kwargs"
        raise ConfigError.of("reasoning_effort", got=config.reasoning_effort, expected=expected)
    if asked:
        raise ConfigError.of("generate config", got=", ".join(asked), expected="only what is implemented")
    options = dict(suggested)
    suggested_tokens = options.pop("max_tokens", _MAX_TOKENS)
    options |= {name: getattr(config, name) for name in _PLAIN if getattr(config, name) is not None}
    if config.response_schema is not None:
        schema = config.response_schema.json_schema.model_dump(mode="json", by_alias=True, exclude_none=True)
        options["structured_outputs"] = {"json": schema}
    if getattr(config, "reasoning_tokens", None) is not None:
        options["thinking_token_budget"] = config.reasoning_tokens
    return SamplingParams(
        n=config.num_choices or 1,
        max_tokens=config.max_tokens or suggested_tokens,
        stop=list(config.stop_seqs or ()),
        logprobs=(config.top_logprobs or 0) if config.logprobs else None,
        **options,
    )


def _logprobs(completion: CompletionOutput, num_top: int) -> Logprobs | None:
    if completion.logprobs is None:
        return None
    content = []
    for token, at in zip(completion.token_ids, completion.logprobs, strict=True):
        likeliest = sorted(
            (candidate for candidate in at.values() if candidate.rank <= num_top),
            key=lambda candidate: candidate.rank,
        )
        top = [
            TopLogprob(token=candidate.decoded_token, logprob=candidate.logprob)
            for candidate in likeliest[:num_top]
        ]
        content.append(
            Logprob(
                token=at[token].decoded_token,
                logprob=at[token].logprob,
                top_logprobs=top if num_top else None,
            )
        )
    return Logprobs(content=content)
