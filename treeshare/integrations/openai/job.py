"""Turns a request in OpenAI's form into what the engine runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from treeshare.engine.chat import DEFAULT_CHAT, render_chat
from treeshare.errors import BudgetError, ConfigError
from treeshare.integrations.openai.schema import COMPLETIONS, ApiError, ChatBody, CompletionBody
from treeshare.integrations.openai.tool_calls import schema_of
from treeshare.sampling import OF_DRAWING, SamplingParams, StructuredOutputsParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from treeshare.engine.chat import ChatOptions
    from treeshare.engine.llm import LLM
    from treeshare.engine.sequence import Request
    from treeshare.integrations.openai.characters import CharacterLimit


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request that can run.

    Attributes:
        body: As it came.
        model: Name under which the model answers.
        requests: For the engine, one for each prompt.
        echoes: Text before each prompt's completions; empty unless ``echo``.
        generates: Whether completions are answered: with ``echo``, ``max_tokens`` may be 0.
    """

    body: CompletionBody | ChatBody
    model: str
    requests: list[Request]
    echoes: list[str]
    generates: bool = True


def make_job(
    llm: LLM,
    body: CompletionBody | ChatBody,
    *,
    model: str,
    seed: int,
    chat: ChatOptions = DEFAULT_CHAT,
    character_limit: CharacterLimit | None = None,
) -> Job:
    """Turn a request into what the engine runs.

    Args:
        llm: The model; only read.
        body: The request.
        model: Name under which the model answers.
        seed: Where the request has none.
        chat: How conversations become prompts; the request's ``chat_template_kwargs`` add to it.
        character_limit: A longer text is refused without being tokenised.

    Raises:
        ApiError: Status 400, if the model cannot run it.
    """
    try:
        if isinstance(body, ChatBody):
            prompts = [_chat_prompt(llm, body, chat, character_limit)]
        else:
            for prompt in body.prompt:
                _check_length(llm, prompt, character_limit, "prompt")
            prompts = [llm.encode(prompt) if isinstance(prompt, str) else prompt for prompt in body.prompt]
        limit = llm.max_model_len
        longest = max(map(len, prompts))
        max_tokens = _max_tokens(body, llm, longest)
        _check_stop_ids(body, llm)
        if longest + max_tokens > limit or max_tokens < 1:
            raise ApiError(
                400,
                f"the model's context is {limit} tokens; the prompt has {longest}"
                + (f" and {max_tokens} more were asked for" if max_tokens > 0 else ""),
                param="messages" if isinstance(body, ChatBody) else "prompt",
                code="context_length_exceeded",
            )
        requests = llm.requests(prompts, _sampling_params(body, max_tokens, seed, llm.suggested))
        llm.engine.check(requests)
    except (ConfigError, BudgetError) as error:
        message = str(error).replace("prompts[", "prompt[")
        if body.structured_outputs is None:
            is_forced = isinstance(body, ChatBody) and body.forced_tool is not None
            name = "tools" if is_forced else "response_format"
            message = message.replace("structured_outputs: ", f"{name}: ")
        name = message.partition(":")[0].partition("[")[0]
        raise ApiError(400, message, param=name, code="invalid_value") from error
    echoes = [""] * len(prompts)
    if isinstance(body, CompletionBody) and body.echo:
        tokenizer = llm.get_tokenizer()
        echoes = [prompt if isinstance(prompt, str) else tokenizer.decode(prompt) for prompt in body.prompt]
    generates = isinstance(body, ChatBody) or body.max_tokens > 0
    return Job(body=body, model=model, requests=requests, echoes=echoes, generates=generates)


def _max_tokens(body: CompletionBody | ChatBody, llm: LLM, num_prompt_tokens: int) -> int:
    """Maximum number of new tokens; of a chat without a limit, what context and KV budget hold."""
    if isinstance(body, CompletionBody):
        return body.max_tokens or 1  # of 0 the token is not answered
    asked = body.max_completion_tokens or body.max_tokens
    return asked or llm.engine.longest_completion(num_prompt_tokens)


def _sampling_params(
    body: CompletionBody | ChatBody, max_tokens: int, seed: int, suggested: Mapping[str, Any]
) -> SamplingParams:
    own = {
        name: suggested[name]
        if name in suggested and name not in body.model_fields_set
        else getattr(body, name)
        for name in OF_DRAWING
    }
    logprobs = body.logprobs if isinstance(body, CompletionBody) else None
    if isinstance(body, ChatBody) and body.logprobs:
        logprobs = body.top_logprobs or 0
    return SamplingParams(
        n=body.n,
        **own,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=seed if body.seed is None else body.seed % 2**64,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        ignore_eos=body.ignore_eos,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens,
        logprobs=logprobs,
        prompt_logprobs=_prompt_logprobs(body),
        thinking_token_budget=body.thinking_token_budget if isinstance(body, ChatBody) else None,
        skip_special_tokens=body.skip_special_tokens,
        include_stop_str_in_output=body.include_stop_str_in_output,
        logit_bias=body.logit_bias,  # type: ignore[arg-type]  # keys are texts in JSON
        allowed_token_ids=body.allowed_token_ids,
        bad_words=body.bad_words,
        structured_outputs=_structured_outputs(body),
    )


def _prompt_logprobs(body: CompletionBody | ChatBody) -> int | None:
    """How many most likely tokens of the prompt's: as asked, or as an answer that repeats it needs."""
    if body.prompt_logprobs is None and isinstance(body, CompletionBody) and body.echo:
        return body.logprobs
    if isinstance(body, CompletionBody) and body.echo and body.logprobs is not None:
        return max(body.logprobs, body.prompt_logprobs or 0)
    return body.prompt_logprobs


def _structured_outputs(body: CompletionBody | ChatBody) -> StructuredOutputsParams | None:
    """What the text must be, by OpenAI's name or by vLLM's."""
    if isinstance(body, ChatBody) and body.forced_tool is not None:
        tools = [tool.model_dump() for tool in body.tools]
        return StructuredOutputsParams(
            json=schema_of(tools, body.forced_tool, parallel=body.parallel_tool_calls)
        )
    form = body.response_format
    if form is None or form.type == "text":
        return StructuredOutputsParams.of(body.structured_outputs)
    if form.json_schema is None:
        return StructuredOutputsParams(json_object=True)
    return StructuredOutputsParams(json=form.json_schema.json_schema)


def _check_stop_ids(body: CompletionBody | ChatBody, llm: LLM) -> None:
    """Refuse stop tokens that the model does not know, or that before ``min_tokens`` leave none to draw."""
    size = llm.vocab_size
    if not all(0 <= token < size for token in body.stop_token_ids):
        raise ConfigError(f"stop_token_ids: expected token ids in [0, {size})")
    if body.min_tokens and len(llm.eos_token_ids.union(body.stop_token_ids)) >= size:
        raise ConfigError("stop_token_ids: together with min_tokens they leave no token to draw")


def _check_length(llm: LLM, prompt: str | list[int], limit: CharacterLimit | None, param: str) -> None:
    """Refuse a text that cannot be few enough tokens."""
    if limit is not None and isinstance(prompt, str) and limit.is_passed(prompt):
        raise ApiError(
            400,
            f"the model's context is {llm.max_model_len} tokens; the prompt has {len(prompt)} characters, "
            f"but that many tokens have at most {limit.max_characters}",
            param=param,
            code="context_length_exceeded",
        )


def _chat_prompt(llm: LLM, body: ChatBody, chat: ChatOptions, limit: CharacterLimit | None) -> list[int]:
    """Token ids of a conversation, as far as where the assistant answers."""
    tokenizer = llm.get_tokenizer()
    if chat.chat_template is None and getattr(tokenizer, "chat_template", None) is None:
        raise ConfigError(f"messages: the model has no chat template; use {COMPLETIONS}")
    conversation = [message.model_dump(exclude_none=True) for message in body.messages]
    options = replace(
        chat,
        chat_template_kwargs={**(chat.chat_template_kwargs or {}), **body.chat_template_kwargs},
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        tools=[tool.model_dump(exclude_none=True) for tool in body.tools] or None,
    )
    text = render_chat(tokenizer, conversation, options, model_id=llm.model_id)
    _check_length(llm, text, limit, "messages")
    return llm.prompt_encoder.encode(text, special_tokens=False)
