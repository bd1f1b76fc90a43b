"""A model's folder with every file that is read of one, and a copy to be damaged."""

from __future__ import annotations

import shutil

import pytest

from tests.evals.tiny_text import save_text_model
from tests.models.damaged import TEMPLATE


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A folder that is read only."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    save_text_model(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def damaged(whole, tmp_path):
    """A copy, to be damaged."""
    return shutil.copytree(whole, tmp_path / "model")
