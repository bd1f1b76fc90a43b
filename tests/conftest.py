"""Shared fixtures: tiny models on disk, a private model cache, quiet libraries."""

from __future__ import annotations

import gc
import os

# Before the first import that starts threads. Tests and their child processes compute with one thread, and a
# thread that waits sleeps: beside busy programs, one that spins takes time from the thread that it waits for.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it once, when it is first imported

import signal

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, settings

from tests.examples import PROFILES
from tests.kernel_levels import AGREEING_LEVELS, LEVEL_PARAMS, is_twin, num_threads, using_kernels
from tests.models.tiny import saved_model

for name, number in PROFILES.items():
    settings.register_profile(
        name, deadline=None, max_examples=number, suppress_health_check=[HealthCheck.too_slow]
    )
settings.load_profile("any machine")
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # after a shell's "&" it is ignored, by children too
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """The whole suite: one process per core, at most four (2 GB each). Named tests run in this process."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(len(os.sched_getaffinity(0)), 4)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of levels that give the same bits, the first is checked by default: ``test_levels.py`` proves it."""
    for item in items:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        dtype = str(params.get("dtype", "")).removeprefix("torch.")
        if is_twin(params.get("each_kernel_level"), dtype):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
    """Collected tests and imported libraries stay: the garbage collector need not look at them each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    """At the end all is collected: libraries complain of objects that are left."""
    gc.unfreeze()


@pytest.fixture(scope="module", params=LEVEL_PARAMS)
def each_kernel_level(request):
    """The test runs with every level of compiled kernels that this CPU has, on two threads."""
    with using_kernels(request.param), num_threads(2):
        yield request.param


@pytest.fixture(scope="module", params=AGREEING_LEVELS)
def each_agreeing_level(request):
    """The same for what the levels compute to the same bits: all but the best are slow."""
    with using_kernels(request.param), num_threads(2):
        yield request.param


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """``model_dir("llama")``: the folder of a tiny random model."""
    folder = tmp_path_factory.mktemp("models")
    return lambda architecture: saved_model(architecture, folder)


@pytest.fixture(scope="module")
def private_cache(tmp_path_factory):
    """What models leave in a cache is left in a folder of the tests'."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """The user's cache is a folder of the test's; which classes of models were checked is not forgotten."""
    from treeshare.models import cache_dir

    checked = cache_dir() / "checked"
    checked.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cache_dir().mkdir(parents=True)
    (cache_dir() / "checked").symlink_to(checked)


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
