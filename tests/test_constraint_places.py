"""Each parameter that says what tokens may come has its place in exactness tests, pages, server, command."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import pytest

from treeshare import SamplingParams
from treeshare.cli import sample as command
from treeshare.integrations.openai.schema import BODIES, CHAT
from treeshare.vllm_names import vllm_names

ROOT = Path(__file__).parents[1]
OPTIONS = {
    "structured_outputs": ("json_schema", "regex", "choice"),
    "thinking_token_budget": ("thinking_token_budget",),
    "logit_bias": ("logit_bias",),
    "allowed_token_ids": ("allowed_token_id",),
    "bad_words": ("bad_word",),
    "prompt_logprobs": (),
    "logits_processors": (),
}
"""Of ``treeshare sample``; none: a page says that it has none."""


def test_exactness():
    """Company, more completions, resuming: ``test_bits_are_the_requests_own`` of both files."""
    pytest.importorskip("llguidance", reason="llguidance is not installed")
    from tests.engine import test_constraints, test_thinking

    values = (*test_constraints.CONSTRAINED.values(), *test_thinking.CASES.values())
    assert OPTIONS.keys() - {"logits_processors"} <= {name for value in values for name in value}
    assert "processors" in test_constraints.CONSTRAINED


@pytest.mark.parametrize("name", OPTIONS)
def test_pages(name):
    pages = [(ROOT / "docs" / page).read_text() for page in ("constraints.md", "chat.md")]
    assert any(name in page for page in pages)
    rows = (ROOT / "docs" / "from_vllm.md").read_text().splitlines()
    assert any(row.startswith(f"| `{name}` | same |") for row in rows)
    assert bool(OPTIONS[name]) != any(f"`sample` has no `{name}`" in page for page in pages)


@pytest.mark.parametrize("name", OPTIONS)
def test_server(name):
    """An endpoint has it, or refuses it by name."""
    if name == "logits_processors":
        return  # of a model, not of a request
    assert name in {field.name for field in dataclasses.fields(SamplingParams)}
    for url, body in BODIES.items():
        kind = "chat" if url == CHAT else "completions"
        assert name in body.model_fields or "instead" in vllm_names()[kind][name]


@pytest.mark.parametrize("name", OPTIONS)
def test_command(name):
    options = set(inspect.signature(command.sample).parameters)
    assert set(OPTIONS[name]) <= options
    assert OPTIONS[name] or name not in options
