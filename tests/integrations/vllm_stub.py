"""vLLM 0.33 by its signatures: it checks each call against them and answers in their form.

It generates nothing of worth. What it checks: names, kinds and defaults of arguments, and that a call uses
what vLLM has; so a script that runs against it and against treeshare uses what both have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def _require(condition, message):
    if not condition:
        raise TypeError(message)


@dataclass
class SamplingParams:
    """As vLLM's, with its order, names and defaults."""

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None

    def __post_init__(self):
        _require(isinstance(self.stop, str | list | None), "stop: text or a list")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: Any
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


class _Tokenizer:
    def encode(self, text, **_):
        return [3 + byte for byte in text.encode()]

    def decode(self, ids, **_):
        return bytes(i - 3 for i in ids if i > 2).decode()


class LLM:
    """As vLLM's: the arguments that a script for treeshare may pass, and vLLM's own."""

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        enforce_eager: bool = False,
        kv_cache_memory_bytes: int | None = None,
        max_num_seqs: int | None = None,
        max_model_len: int | None = None,
        enable_prefix_caching: bool | None = None,
    ):
        _require(isinstance(model, str), "model: a name or a path, as text")

    def get_tokenizer(self):
        return _Tokenizer()

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None, priority=None):
        prompts = prompts if isinstance(prompts, list) else [prompts]
        return self._outputs([self._parsed(prompt) for prompt in prompts], sampling_params)

    def chat(
        self,
        messages,
        sampling_params=None,
        use_tqdm=True,
        lora_request=None,
        priority=None,
        chat_template=None,
        chat_template_content_format="auto",
        add_generation_prompt=True,
        continue_final_message=False,
        tools=None,
        chat_template_kwargs=None,
    ):
        conversations = messages if isinstance(messages[0], list) else [messages]
        texts = ["".join(message["content"] for message in conversation) for conversation in conversations]
        return self._outputs([(text, self.get_tokenizer().encode(text)) for text in texts], sampling_params)

    def _parsed(self, prompt):
        if isinstance(prompt, str):
            return prompt, self.get_tokenizer().encode(prompt)
        _require(
            isinstance(prompt, dict) and set(prompt) <= {"prompt", "prompt_token_ids"}, "a prompt's form"
        )
        if "prompt_token_ids" in prompt:
            return prompt.get("prompt"), prompt["prompt_token_ids"]
        return self._parsed(prompt["prompt"])

    def _outputs(self, prompts, params):
        params = params if isinstance(params, list) else [params or SamplingParams()] * len(prompts)
        _require(len(params) == len(prompts), "parameters of each prompt")
        _require(all(isinstance(param, SamplingParams) for param in params), "vLLM's own parameters")
        return [
            RequestOutput(
                request_id=str(i),
                prompt=text,
                prompt_token_ids=list(ids),
                prompt_logprobs=None,
                outputs=[self._completion(index, param) for index in range(param.n)],
                finished=True,
                num_cached_tokens=0,
            )
            for i, ((text, ids), param) in enumerate(zip(prompts, params, strict=True))
        ]

    def _completion(self, index, params):
        ids = [100] * params.max_tokens
        logprobs = None
        if params.logprobs is not None:
            logprobs = [{100: Logprob(-0.5, 1, "a")} for _ in ids]
        return CompletionOutput(index, "a" * len(ids), ids, -0.5 * len(ids), logprobs, "length", None)
