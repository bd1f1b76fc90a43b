"""Shared fixtures: tiny models on disk, a private model cache, quiet libraries."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

from tests.kernel_levels import LEVEL_PARAMS, using_kernels
from tests.models.tiny import saved_model

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when it is first imported
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
torch.set_num_threads(2)
signal.signal(signal.SIGINT, signal.default_int_handler)  # after a shell's "&" it is ignored, by children too
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@pytest.fixture(scope="module", params=LEVEL_PARAMS)
def each_kernel_level(request):
    """The test runs with every level of compiled kernels that this CPU has."""
    with using_kernels(request.param):
        yield request.param


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """``model_dir("llama")``: the folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("models")
    return lambda architecture: saved_model(architecture, folder)


@pytest.fixture(scope="session")
def quick_interpreter():
    """Triton's interpreter patches its language again at each call inside a kernel: once a launch will do.

    NumPy's warnings are off as a GPU's are: unwritten keys hold anything, and their scores are masked.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter", reason="Triton is not installed")
    launch, patched = interpreter.GridExecutor.__call__, set()

    def launch_anew(self, *args, **kwargs):
        patched.clear()
        with np.errstate(over="ignore", invalid="ignore"):
            return launch(self, *args, **kwargs)

    def call(self, *args, **kwargs):
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.GridExecutor, "__call__", launch_anew)
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
