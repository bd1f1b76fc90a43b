"""One tiny model for all of these tests; a server each module."""

from __future__ import annotations

import pytest

from tests.integrations.openai.serving import serving
from treeshare import LLM, AsyncLLM


@pytest.fixture(scope="session")
def llm(chat_model):
    """The same model by itself: what answers are compared with."""
    return LLM(chat_model, dtype="float32")


@pytest.fixture(scope="session")
def async_llm(chat_model):
    llm = AsyncLLM(chat_model, dtype="float32")
    yield llm
    llm.close()


@pytest.fixture(scope="module")
def served(async_llm):
    with serving(async_llm) as running:
        yield running
