#!/usr/bin/env bash
# Measures the Triton backend on a CUDA device in under 8 minutes, correctness first, and writes docs/bench/gpu.md.
# Where there is no GPU it says so and has measured nothing. Arguments go to scripts/bench/gpu_bench.py.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi --list-gpus 2>/dev/null | grep -q '^GPU'; then
    echo "bench_gpu: nvidia-smi finds no GPU: nothing was measured."
    exit 0
fi
python=${PYTHON:-.venv/bin/python}
export TRITON_INTERPRET=0
timeout 150 "$python" -m pytest -m gpu tests/attention tests/engine/test_cuda_engine.py
timeout 310 "$python" scripts/bench/gpu_bench.py --out docs/bench/gpu "$@"
