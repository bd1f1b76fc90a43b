"""A tiny model that converses."""

from __future__ import annotations

import pytest

from tests.integrations.openai.serving import saved_chat_model


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory):
    return saved_chat_model(tmp_path_factory.mktemp("chat"))
