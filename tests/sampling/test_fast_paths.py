"""What the fast paths of drawing honour: every parameter is listed, a new one takes the general path."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from tests.kernel_levels import LEVELS, using_kernels
from treeshare.sampling import SamplingParams, compiled, device
from treeshare.sampling.params import NOT_FOR_DRAWING
from treeshare.sampling.sampler import RowSpec

GENERAL = {
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.5,
    "logprobs": 0,
}
"""Parameters that only the general path applies, each with a value that is not its default."""

FILTERS = {"top_k": 5, "top_p": 0.5, "min_p": 0.1, "logit_bias": {3: 1.0}}
"""Parameters that the kernel applies, and a device does not."""

MASKS = {
    "allowed_token_ids": [1],
    "bad_words": ["x"],
    "structured_outputs": {"regex": "a"},
    "extra_args": {"x": 1},
}
"""Parameters that all paths apply, as they come in a mask, or apply none, as they come with a user's code."""


@dataclass(frozen=True, kw_only=True)
class NewParams(SamplingParams):
    """As if somebody had added a filter and nothing else."""

    top_new: float = 0.0


def is_plain(params):
    return device._is_plain(RowSpec(params, [], []))


def test_every_parameter_is_classified():
    names = {field.name for field in fields(SamplingParams)}
    kinds = [set(NOT_FOR_DRAWING), {"temperature"}, set(FILTERS), set(GENERAL)]
    assert names == set().union(*kinds)
    assert sum(map(len, kinds)) == len(names)


@pytest.mark.skipif(not LEVELS, reason="no compiled kernels are built for this CPU")
@pytest.mark.parametrize("name", [field.name for field in fields(SamplingParams)])
def test_only_what_the_kernel_honours_is_its(name):
    values = {"temperature": 0.5, "n": 2, "seed": 1, "stop": "x", "stop_token_ids": [1], "ignore_eos": True}
    values |= {"max_tokens": 9, "min_tokens": 3, "skip_special_tokens": False, **FILTERS, **GENERAL, **MASKS}
    values |= {"include_stop_str_in_output": True, "prompt_logprobs": 1, "thinking_token_budget": 5}
    params = SamplingParams(**{name: values[name]})
    assert getattr(params, name) != getattr(SamplingParams(), name)
    with using_kernels(LEVELS[0]):
        assert compiled.can_draw(params) == (name not in GENERAL)
    assert is_plain(params) == (name not in GENERAL and name not in FILTERS)


def test_a_new_filter_is_not_ignored():
    with using_kernels(LEVELS[0] if LEVELS else "none"):
        assert compiled.can_draw(NewParams()) == bool(LEVELS)
        assert not compiled.can_draw(NewParams(top_new=0.5))
    assert is_plain(NewParams())
    assert not is_plain(NewParams(top_new=0.5))


def test_filters_leave_a_greedy_row_plain():
    filters = {name: value for name, value in FILTERS.items() if name != "logit_bias"}
    assert is_plain(SamplingParams(temperature=0, **filters))
    assert not is_plain(SamplingParams(temperature=0, **FILTERS))
    assert not is_plain(SamplingParams(temperature=0, **filters, presence_penalty=1.0))
