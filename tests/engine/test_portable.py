"""Level portable: the same bits whatever instructions a CPU, and the libraries on it, have."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from tests.engine.portable_run import portable_run
from tests.kernel_levels import PORTABLE_CODES, num_threads, portable_by, using_kernels
from tests.turns import slow_but
from treeshare.engine.llm import LLM
from treeshare.errors import ConfigError
from treeshare.runs.sampling_run import computation

pytestmark = pytest.mark.skipif(not PORTABLE_CODES, reason="no compiled library")

ROOT = Path(__file__).parents[2]

NO_GLIBC = {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4,-AVX512F,-AVX512VL,-ERMS"}
NO_NUMPY = {"NPY_DISABLE_CPU_FEATURES": "X86_V3,X86_V4,AVX512_ICL,AVX512_SPR"}
NO_MATMULS = {
    "MKL_CBWR": "COMPATIBLE",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "NEHALEM",
}
OLD_CPU = {"ATEN_CPU_CAPABILITY": "default", **NO_GLIBC, **NO_NUMPY, **NO_MATMULS}

MASKS = {
    "torch default": {"ATEN_CPU_CAPABILITY": "default"},
    "torch avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "torch avx512": {"ATEN_CPU_CAPABILITY": "avx512"},
    "glibc": NO_GLIBC,
    "numpy": NO_NUMPY,
    "matmul libraries": NO_MATMULS,
    "two threads": {"OMP_NUM_THREADS": "2"},
    "all but torch, five threads": {**NO_GLIBC, **NO_NUMPY, **NO_MATMULS, "OMP_NUM_THREADS": "5"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model of the Llama shape with rotary positions of a kind that is computed from others."""
    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 7e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data *= 4 if parameter.dim() > 1 else torch.rand_like(parameter) + 0.5
    path = tmp_path_factory.mktemp("portable")
    model.save_pretrained(path)
    return path


def run_masked(
    folder,
    dtype,
    mask,
    *,
    num_tokens=300,
    interpreter=(sys.executable,),
    level="portable",
    module="portable_run",
):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **mask, "TREESHARE_KERNELS": level}
    environment["PYTHONPATH"] = str(ROOT)
    command = [*interpreter, "-m", f"tests.engine.{module}", str(folder), dtype, str(num_tokens)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def run_here(folder, dtype, num_tokens=300):
    with using_kernels("portable"):
        return portable_run(folder, dtype, num_tokens)


def test_an_old_cpu_gives_the_same_bits(folder):
    """Its libraries, and its kernels' code below; each part of the model is compared."""
    assert run_masked(folder, "bfloat16", OLD_CPU, num_tokens=140) == run_here(folder, "bfloat16", 140)


@pytest.mark.parametrize("dtype", slow_but(["bfloat16"], ["bfloat16", "float32"]))
def test_whichever_code_serves_it_gives_the_same_bits(folder, dtype):
    found = {}
    for code in PORTABLE_CODES:
        with portable_by(code):
            found[code] = portable_run(folder, dtype, 40)
    assert [code for code in found if found[code] != found[PORTABLE_CODES[0]]] == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("mask", [*MASKS, "old CPU"])
def test_masks(folder, dtype, mask):
    assert run_masked(folder, dtype, MASKS.get(mask, OLD_CPU)) == run_here(folder, dtype)


@pytest.mark.slow
def test_without_the_level_the_masks_change_bits(folder):
    """The positive control: torch's own layers, and its own logarithms."""
    plain, masked = (run_masked(folder, "float32", mask, level="none") for mask in ({}, OLD_CPU))
    changed = {name for name in plain if plain[name] != masked[name]}
    assert changed >= {"model.layers.0", "model.layers.1", "lm_head", "log-probabilities"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64-static") is None, reason="no qemu-user-static")
@pytest.mark.parametrize("cpu", ["Nehalem", "Haswell"])
def test_emulated_cpus(folder, cpu):
    """One without AVX, one with AVX2 and FMA: other code of every library, and of ours on the first."""
    emulator = ("qemu-x86_64-static", "-cpu", cpu, sys.executable)
    found = run_masked(folder, "bfloat16", {}, num_tokens=80, interpreter=emulator)
    assert found == run_here(folder, "bfloat16", 80)


def test_threads_change_no_bit(folder):
    found = []
    for number in (1, 3):
        with num_threads(number):
            found.append(run_here(folder, "bfloat16", 60))
    assert found[0] == found[1]


def test_a_run_records_the_level_not_its_code(folder):
    """So that one that was begun on another CPU goes on here, without a warning."""
    recorded = []
    for code in PORTABLE_CODES:
        with portable_by(code):
            recorded.append(computation(LLM(folder).engine))
    assert {record["kernels"] for record in recorded} == {"portable"}
    assert all(record == recorded[0] for record in recorded)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_another_attention_is_refused(folder, backend):
    message = rf"^backend: got '{backend}', expected native with TREESHARE_KERNELS=portable$"
    with using_kernels("portable"), pytest.raises(ConfigError, match=message):
        LLM(folder, backend=backend)
