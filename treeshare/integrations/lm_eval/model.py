"""The model that lm-eval calls: all requests of a call are one tree.

Where lm-eval's ``hf`` model has a rule (truncation, special tokens, stop strings, defaults of sampling), this
one has the same, and in float32 the same results. Other than there, a sampled answer can be replayed: it
depends on the seed, the task, the document and the number of the copy.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import lm_eval.models  # noqa: F401  (fills the registry; after a model of ours it would stay empty)
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm.auto import tqdm

from treeshare import LLM
from treeshare.config import require_int
from treeshare.errors import ConfigError
from treeshare.integrations.arguments import engine_options
from treeshare.integrations.lm_eval.device import engine_device
from treeshare.integrations.lm_eval.generation import Generation, make_generation
from treeshare.integrations.lm_eval.text import TextRules
from treeshare.sampling import problem_key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from treeshare.engine.sequence import Request
    from treeshare.integrations.lm_eval.text import Messages

    TokenPair = tuple[tuple[str, str] | None, list[int], list[int]]

_LOG = logging.getLogger(__name__)

_OWN_ARGUMENTS = (
    "pretrained",
    "model",
    "max_length",
    "max_gen_toks",
    "add_bos_token",
    "prefix_token_id",
    "enable_thinking",
    "think_end_token",
    "chat_template_args",
    "truncation",
    "batch_size",
    "max_batch_size",
    "device",
)


@register_model("treeshare")
class TreeshareLM(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """A causal language model whose requests share prefixes, KV and rows.

    Args:
        pretrained: The model, as ``LLM`` takes it.
        model: Another name for ``pretrained``.
        max_length: Maximum number of tokens of a context and its continuation; the model's own by default.
        max_gen_toks: Maximum number of generated tokens where a task does not say.
        add_bos_token: Whether to put a beginning-of-sequence token in front; else as the tokenizer does.
        prefix_token_id: The context of an empty one, and of what is scored whole; by default
            beginning-of-sequence, else end-of-sequence.
        enable_thinking: Passed to the chat template.
        think_end_token: What comes before it, text or a token id, is cut from answers.
        chat_template_args: Further arguments of the chat template.
        truncation: Whether the tokenizer cuts contexts of answers to its own ``model_max_length``, as ``hf``.
        batch_size: Ignored: rows and memory decide how many requests run at once.
        max_batch_size: Ignored.
        device: As for ``LLM``, but ``cuda:0``, which lm-eval's command line says when its user does not, is
            the CPU where no CUDA device can be used.
        **options: ``arguments.ENGINE_ARGUMENTS`` as for ``LLM``; those of lm-eval's ``hf`` and ``vllm``
            models where they have a meaning here, or ask for nothing.

    Raises:
        ConfigError: If an argument is unknown or out of range, or the model has no tokenizer.
        ModelLoadError: If the model cannot be found or read.
        UnsupportedModelError: If the model needs what treeshare does not implement.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        *,
        model: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        enable_thinking: bool | None = None,
        think_end_token: str | int | None = None,
        chat_template_args: Mapping[str, Any] | None = None,
        truncation: bool | None = False,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **options: Any,  # noqa: ANN401
    ) -> None:
        super().__init__()
        name = _model_name(pretrained, model)
        options = engine_options(options, _OWN_ARGUMENTS)
        self.llm = llm = LLM(name, device=engine_device(device), **options)
        self.tokenizer = llm.get_tokenizer()
        if max_length is not None:
            require_int("max_length", max_length, low=2, high=llm.max_model_len)
        require_int("max_gen_toks", max_gen_toks, low=1)
        if truncation not in (None, True, False):
            raise ConfigError.of("truncation", got=truncation, expected="True or False")
        if prefix_token_id is not None:
            require_int("prefix_token_id", prefix_token_id, low=0, high=llm.vocab_size - 1)
        self.max_length = max_length or llm.max_model_len
        self.max_gen_toks = max_gen_toks
        thinking = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        self._text = TextRules(
            self.tokenizer,
            llm.model_id,
            add_bos_token=add_bos_token,
            prefix_token_id=prefix_token_id,
            think_end_token=think_end_token,
            chat_template_args={**(chat_template_args or {}), **thinking},
            truncation=bool(truncation),
        )

    # -- text and tokens --

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end-of-sequence token."""
        return self._text.eot_token_id

    @property
    def prefix_token_id(self) -> int:
        """The context of what has none."""
        return self._text.prefix_token_id

    @property
    def tokenizer_name(self) -> str:
        """Under which lm-eval caches requests that have gone through the chat template."""
        return self._text.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids; special tokens as the tokenizer does, but none before a text that begins with one."""
        return self._text.encode(string, add_special_tokens)

    def apply_chat_template(self, chat_history: Messages, add_generation_prompt: bool = True) -> str:
        """The prompt of a conversation; without its system message where the template refuses one.

        Raises:
            ConfigError: If the model has no chat template.
        """
        return self._text.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval notes of the model beside its results."""
        model = self.llm.model
        return {"model_num_parameters": model.num_parameters(), "model_dtype": str(model.dtype)}

    # -- requests --

    def _loglikelihood_tokens(
        self, requests: Sequence[TokenPair], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        pairs = []
        for i, (_text, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ConfigError.of(
                    f"requests[{i}]: continuation",
                    got=f"{len(continuation)} tokens",
                    expected=f"1 to max_length, {self.max_length}",
                )
            excess = len(context) + len(continuation) - (self.max_length + 1)
            if excess > 0:
                _LOG.warning("A context is too long by %d tokens; it is truncated on the left.", excess)
            pairs.append((context[max(excess, 0) :], continuation))
        scores = self.llm.score(pairs, use_tqdm=not disable_tqdm)
        answers = [(score.total, score.all_greedy) for score in scores]
        for (text, _context, _continuation), answer in zip(requests, answers, strict=True):
            if text is not None:  # a window of a longer text
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether it is the greedy one.

        Raises:
            ConfigError: If the chat template is made to think before it answers.
        """
        if self._text.enables_thinking:
            raise ConfigError("enable_thinking: got True, expected False for tasks that score given answers")
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows of ``max_length``, each token predicted once."""
        windows: list[TokenPair] = []
        counts = []
        for request in requests:
            cut = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own: list[TokenPair] = [(None, *utils.make_disjoint_window(window)) for window in cut]
            windows += own
            counts.append(len(own))
        answers = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        totals = []
        for request, count in zip(requests, counts, strict=True):
            totals.append(sum(next(answers)[0] for _ in range(count)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """An answer to each request; an instance that comes several times gets as many answers.

        Raises:
            ConfigError: If a task asks for what is not implemented, or leaves no room for a context.
        """
        places: dict[int, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(id(request), []).append(place)
        groups = list(places.values())
        generations: list[Generation] = []
        asked: list[Request] = []
        seen = Counter[str]()
        for group in groups:
            instance = requests[group[0]]
            context, gen_kwargs = instance.args
            generation = self._generation(gen_kwargs, len(group))
            generations.append(generation)
            context_ids = self._text.encode_context(context, self._room(generation.params.max_length))
            (request,) = self.llm.requests([context_ids], generation.params)
            name = json.dumps([instance.task_name, instance.doc_id, instance.idx, context])
            key = problem_key(f"{name} {seen[name]}")
            asked.append(replace(request, problem_key=key, ends=self._text.stop(generation.until)))
            seen[name] += 1
        answers = [""] * len(requests)
        with tqdm(total=len(requests), desc="Answers", unit="", disable=disable_tqdm) as bar:
            for completion in self.llm.engine.run(asked):
                index = completion.request_index
                text = self._text.decode_answer(completion.token_ids, generations[index].until)
                place = groups[index][completion.completion_index]
                answers[place] = text
                self.cache_hook.add_partial("generate_until", requests[place].args, text)
                bar.update()
        return answers

    def _generation(self, gen_kwargs: Mapping[str, Any], num_copies: int) -> Generation:
        return make_generation(
            gen_kwargs,
            num_copies=num_copies,
            max_gen_toks=self.max_gen_toks,
            eot_text=self._text.eot_text,
            model_defaults=self.llm.model.generation_config,
        )

    def _room(self, max_new_tokens: int) -> int:
        """Maximum number of tokens of a context, so that there is room for what is generated."""
        room = self.max_length - max_new_tokens
        if room < 1:
            raise ConfigError.of(
                "max_gen_toks", got=max_new_tokens, expected=f"less than max_length, {self.max_length}"
            )
        return room


def _model_name(pretrained: str | None, model: str | None) -> str:
    names = [name for name in (pretrained, model) if name is not None]
    if len(names) != 1:
        raise ConfigError.of(
            "pretrained",
            got=", ".join(map(str, names)) or None,
            expected="one model",
            remedy="pretrained=NAME",
        )
    return names[0]
