"""A small random model of the same class as another: fewer layers, smaller sizes, short windows.

What depends on a length shows in it after a few tokens, and it costs a fraction of a second.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

MAX_NUMBERS = 40_000_000
"""Weights of a model that is still small."""

_VOCAB_SIZE = 160
_NUM_HEADS, _NUM_KV_HEADS, _HEAD_WIDTH = 4, 2, 16
_MAX_LAYERS = 8

_POSITIONS = re.compile(
    r"(?<!original_)max_position_embeddings|n_positions|n_ctx|max_seq_len|model_max_length|context_length"
    r"|max_target_positions"
)
_LENGTH = re.compile(r"window|chunk|floor|original_max_position|local_attention|block_size|rel_extent")
"""Fields that hold a number of tokens from which on a model computes something else,"""

_NO_LENGTH = re.compile(r"layers|pattern|feed")
"""unless this follows."""

_LAYERS = re.compile(r"num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_layers")
_Q_HEADS = re.compile(
    r"(swa_|decoder_|encoder_|num_decoder_|num_encoder_)?(num_|n_)?(attention_)?heads?(_per_layer)?|n_head"
)
_KV_HEADS = re.compile(r"(swa_)?num_(global_)?(key_value|kv)_heads")
_HEAD_WIDTHS = re.compile(
    r"(global_|swa_|attention_|qk_nope_|qk_rope_|v_)?head_dim|kv_channels|rotary_dim|d_head"
)
_HIDDEN = re.compile(
    r"hidden_size|n_embd|d_model|emb_dim|embedding_size|word_embed_proj_dim|attention_hidden_size|lru_width"
    r"|(pronunciation|shape)_embed_dim|input_embedding_size|output_embedding_size"
)
_INNER = ("ffn_dim", "ffn_hidden_size", "n_inner", "d_inner", "dff", "dim_ff")
_EXPERTS = re.compile(r"(moe_)?num_(local_)?experts|n_routed_experts|zero_expert_num")
_CHOSEN = re.compile(
    r"(num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k|n_group|topk_group|num_expert_group)"
)
_GROUPS = re.compile(r"n_group|topk_group|num_expert_group")
_RANKS = re.compile(r"(q|kv|o)_lora_rank|hidden_size_per_layer_input|laurel_rank")
_VOCAB = re.compile(r"((unpadded|decoder)_)?vocab_size(_per_layer_input)?")


_LEFT_OUT = ("quantization_config", "transformers_version", "architectures", "dtype", "id2label", "label2id")
"""Fields that say nothing of what a model computes."""


def _holds_length(name: str) -> bool:
    """Whether a field holds a number of tokens from which on a model computes something else."""
    found = _LENGTH.search(name)
    return found is not None and not _NO_LENGTH.search(name, found.end())


def _is_inner(name: str) -> bool:
    """Whether a field holds the width between a block's linear layers."""
    return "multiple" not in name and ("intermediate_size" in name or name.endswith(_INNER))


def _is_token(name: str) -> bool:
    """Whether a field holds a token's id."""
    return name.endswith(("_token_id", "_token_index"))


_Rule = tuple["Callable[[str], object]", "Callable[[], int]"]
"""Whether a field is of a kind, and what its number becomes."""


class Miniature:
    """Makes configurations small.

    Args:
        first_length: Windows, chunks and their like become this length and those that follow.
        max_positions: Of a sequence.
        keep_widths: Whether heads stay as wide as they are, and as many: for configurations whose fields
            must fit them.
    """

    def __init__(self, *, first_length: int, max_positions: int, keep_widths: bool = False) -> None:
        self._first_length, self._max_positions, self._keep_widths = first_length, max_positions, keep_widths

    def config(self, config: Any) -> Any:  # noqa: ANN401
        """A configuration of the same class, small; its class may refuse fields that do not fit."""
        values = config.to_dict()
        for name in _LEFT_OUT:
            values.pop(name, None)
        lengths: dict[tuple[str, int], int] = {}
        small = self._shrunk(values, lengths)
        made = type(config).from_dict(small)
        made._experts_implementation = None
        return made

    def _shrunk(
        self,
        values: Mapping[str, Any],
        lengths: dict[tuple[str, int], int],
        wanted: Collection[str] | None = None,
    ) -> dict[str, Any]:
        """The fields of a configuration, or of one inside it; those ``wanted``, or all."""
        kept = _kept_layers(values)
        number = next((value for name, value in values.items() if _LAYERS.fullmatch(name)), None)
        small: dict[str, Any] = {}
        for name, value in values.items():
            if wanted is not None and name not in wanted:
                continue
            new = value
            if isinstance(value, list) and number and len(value) == number:
                new = [value[index] for index in kept]
            if name == "per_layer_config" and isinstance(value, dict):
                own = {int(key): part for key, part in value.items()}
                new = {
                    f"{place:02}": self._shrunk({**values, name: None, **own[index]}, lengths, own[index])
                    for place, index in enumerate(kept)
                    if index in own
                }
            elif isinstance(value, dict):
                new = self._shrunk({str(key): part for key, part in value.items()}, lengths)
            elif isinstance(new, list):
                new = [self._number(name, item, values, kept, lengths) for item in new]
            else:
                new = self._number(name, value, values, kept, lengths)
            small[name] = new
        if {"qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"} <= set(small):
            small["qk_head_dim"] = small["qk_nope_head_dim"] + small["qk_rope_head_dim"]
        if values.get("num_layers_per_stack"):  # which is run through several times
            small["num_layers_per_stack"] = 1
            small["num_hidden_layers"] = values["num_hidden_layers"] // values["num_layers_per_stack"]
        return small

    def _number(
        self,
        name: str,
        value: Any,  # noqa: ANN401
        values: Mapping[str, Any],
        kept: list[int],
        lengths: dict[tuple[str, int], int],
    ) -> Any:  # noqa: ANN401
        """A field's value, small."""
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            return value
        heads = next((values[key] for key in values if _Q_HEADS.fullmatch(key)), None)

        def heads_of(number: int) -> int:
            return _NUM_HEADS if number == heads else _NUM_KV_HEADS

        rules: tuple[_Rule, ...] = (
            (_POSITIONS.fullmatch, lambda: min(value, self._max_positions)),
            (_holds_length, lambda: self._length(name, value, values, lengths)),
            (_LAYERS.fullmatch, lambda: len(kept) or value),
            (re.compile("num_kv_shared_layers").fullmatch, lambda: _num_shared(values, kept)),
            (_VOCAB.fullmatch, lambda: min(value, _VOCAB_SIZE)),
            (_EXPERTS.fullmatch, lambda: min(value, 4)),
            (_GROUPS.fullmatch, lambda: 1),
            (_CHOSEN.fullmatch, lambda: min(value, 2)),
            (_is_inner, lambda: min(value, 96)),
            (_RANKS.fullmatch, lambda: min(value, 32)),
            (_is_token, lambda: value if value < _VOCAB_SIZE else 2),
        )
        widths: tuple[_Rule, ...] = (
            (_KV_HEADS.fullmatch, lambda: 1 if value == 1 else heads_of(value)),
            (_Q_HEADS.fullmatch, lambda: min(value, _NUM_HEADS)),
            (_HEAD_WIDTHS.fullmatch, lambda: _narrow(value, values)),
            (_HIDDEN.fullmatch, lambda: min(value, _NUM_HEADS * _narrow(_head_width(values), values))),
        )
        for fits, small in rules if self._keep_widths else rules + widths:
            if fits(name):
                return small()
        return value

    def _length(
        self, name: str, value: int, values: Mapping[str, Any], lengths: dict[tuple[str, int], int]
    ) -> int:
        """A short length for a long one; equal ones stay equal, and one of all positions stays so."""
        if value <= self._first_length:
            return value
        positions = next((number for key, number in values.items() if _POSITIONS.fullmatch(key)), None)
        if isinstance(positions, int) and value >= positions and "original" not in name:
            return max(self._max_positions, value if value <= self._max_positions else 0)
        return lengths.setdefault((name, value), self._first_length + len(lengths))


def _head_width(values: Mapping[str, Any]) -> int:
    """How wide heads are."""
    heads = next((values[key] for key in values if _Q_HEADS.fullmatch(key) and values[key]), 1)
    hidden = next((values[key] for key in values if _HIDDEN.fullmatch(key) and values[key]), _HEAD_WIDTH)
    for name in ("qk_nope_head_dim", "head_dim", "kv_channels"):
        if isinstance(values.get(name), int):
            return int(values[name])
    return max(1, int(hidden) // int(heads if isinstance(heads, int) else heads[0]))


def _narrow(width: int, values: Mapping[str, Any]) -> int:
    """A head's width, small: all are divided by the same number, to multiples of 8."""
    factor = max(1, _head_width(values) // _HEAD_WIDTH)
    return width if factor == 1 else max(8, width // factor // 8 * 8)


def _lists(values: Mapping[str, Any], number: int) -> list[list[Any]]:
    return [value for value in values.values() if isinstance(value, list) and len(value) == number]


def _num_shared(values: Mapping[str, Any], kept: list[int]) -> int:
    """How many of the kept layers use another's KV."""
    number = len(next(iter(_lists(values, values["num_hidden_layers"])), kept))
    return sum(index >= number - values["num_kv_shared_layers"] for index in kept)


def _kept_layers(values: Mapping[str, Any]) -> list[int]:
    """The layers of a small model: the first two, and the first of each kind that the fields' lists tell."""
    number = next((value for name, value in values.items() if _LAYERS.fullmatch(name)), 0)
    if not isinstance(number, int) or number <= 0:
        return []
    if number <= _MAX_LAYERS:
        return list(range(number))
    lists, shared = _lists(values, number), values.get("num_kv_shared_layers") or 0
    special = {int(key): str(part) for key, part in (values.get("per_layer_config") or {}).items()}
    seen: set[object] = set()
    kept = []
    for index in range(number):
        kind = (*(str(part[index]) for part in lists), special.get(index), index >= number - shared)
        if kind not in seen or index < 2:
            kept.append(index)
        seen.add(kind)
    return kept[:_MAX_LAYERS]


@torch.no_grad()
def spread_weights(model: Any, seed: int = 0) -> None:  # noqa: ANN401
    """Give a model random weights of which each shows in its logits; as made, most are close to zero."""
    draws = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draws)
        if parameter.dim() < 2:
            parameter.add_((0.1 * noise).to(parameter.dtype))
        else:
            size = max(parameter.shape[-1], 1) if "experts" not in name else max(parameter.shape[-2:])
            parameter.copy_(noise * size**-0.5 * (4 if "embed" in name else 1))


def small_model(
    model_class: Any,  # noqa: ANN401
    config: Any,  # noqa: ANN401
    *,
    first_length: int,
    max_positions: int,
    errors: list[Exception] | None = None,
) -> Any | None:  # noqa: ANN401
    """A small random model of a class, in float32; None if its configuration cannot be made small.

    Args:
        model_class: A transformers class.
        config: Its configuration, of any size; stays as it is.
        first_length: See ``Miniature``.
        max_positions: See ``Miniature``.
        errors: What its class raised at each attempt is appended.
    """
    for config_of in _attempts(first_length, max_positions):
        try:
            small = config_of(config)
            with torch.device("meta"):
                bare = model_class(small)
            if sum(parameter.numel() for parameter in bare.parameters()) > MAX_NUMBERS:
                continue
            model = model_class._from_config(small, dtype=torch.float32).eval()
            spread_weights(model)
            model(input_ids=torch.arange(3).unsqueeze(0), use_cache=False)
        except Exception as error:  # whatever a class makes of sizes that do not fit
            if errors is not None:
                errors.append(error)
            continue
        return model
    return None


def _attempts(first_length: int, max_positions: int) -> Iterator[Callable[[Any], Any]]:
    for keep_widths in (False, True):
        yield Miniature(
            first_length=first_length, max_positions=max_positions, keep_widths=keep_widths
        ).config
