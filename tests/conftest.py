"""Shared fixtures: tiny models on disk, a private model cache, quiet libraries."""

from __future__ import annotations

import os
import signal

import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

from tests.models.tiny import saved_model

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when it is first imported
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # after a shell's "&" it is ignored, by children too
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """``model_dir("llama")``: the folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("models")
    return lambda architecture: saved_model(architecture, folder)
