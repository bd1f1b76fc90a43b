#!/usr/bin/env bash
# Make wheels for Linux with the kernels of all levels in them, one for each architecture:
#     bash scripts/build_wheels.sh [--out FOLDER] [x86_64] [aarch64]
# Into dist/, for both, unless told otherwise. A wheel serves every Python from 3.11 on (the library has no Python in
# it) and every Linux with glibc 2.28 (manylinux_2_28: Debian 10, RHEL 8, Ubuntu 20.04), which auditwheel checks.
#
# Needs g++ 10 or newer: this machine's own, or for the other architecture Debian's g++-aarch64-linux-gnu or
# g++-x86-64-linux-gnu. gcc, as the kernels call the OpenMP library that torch brings: gcc's, or another that has
# gcc's entry points; clang's code calls its own alone. Nothing is linked against any.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

glibc=2.28
out=dist
architectures=()
while [ $# -gt 0 ]; do
    case $1 in
    --out) out=${2:?--out needs a folder} && shift ;;
    x86_64 | aarch64) architectures+=("$1") ;;
    *)
        echo "build_wheels.sh: got '$1', expected --out FOLDER, x86_64 or aarch64" >&2
        exit 2
        ;;
    esac
    shift
done
[ ${#architectures[@]} -gt 0 ] || architectures=(x86_64 aarch64)
mkdir -p "$out"
out=$(cd "$out" && pwd)

# The compiler for an architecture: g++ here, else Debian's name of a cross compiler.
compiler_of() {
    if [ "$1" = "$(uname -m)" ]; then echo g++; else echo "${1/_/-}-linux-gnu-g++"; fi
}
for architecture in "${architectures[@]}"; do
    compiler=$(compiler_of "$architecture")
    command -v "$compiler" >/dev/null || {
        echo "build_wheels.sh: $compiler is missing, expected for $architecture: sudo apt-get install" \
            "g++$([ "$compiler" = g++ ] || echo "-${compiler%-g++}")" >&2
        exit 2
    }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1
"${PYTHON:-python3}" -m venv "$work/tools"
python=$work/tools/bin/python
"$python" -m pip install --quiet 'setuptools>=77' 'wheel>=0.46' 'auditwheel>=6.4'

# From a copy without what was built before: setuptools would take it for up to date.
mkdir "$work/source"
tar --create --exclude='*.so' --exclude=__pycache__ --exclude=treeshare/tasks \
    pyproject.toml README.md LICENSE treeshare tasks | tar --extract --directory "$work/source"

for architecture in "${architectures[@]}"; do
    compiler=$(compiler_of "$architecture")
    flags="-O3 -DNDEBUG -fPIC"
    rm -rf "$work/source/build" "$work/source"/*.egg-info "$work/wheel"
    # A name that every Python looks for, and the platform of the library instead of this machine's.
    env CC="$compiler" CXX="$compiler" CFLAGS="$flags" CXXFLAGS="$flags" LDFLAGS=-Wl,--strip-all \
        LDSHARED="$compiler -shared" LDCXXSHARED="$compiler -shared" \
        SETUPTOOLS_EXT_SUFFIX=.so _PYTHON_HOST_PLATFORM="linux-$architecture" \
        "$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$work/source"
    "$python" -m wheel tags --remove --python-tag py3 --abi-tag none \
        --platform-tag "manylinux_${glibc/./_}_$architecture" "$work"/wheel/*.whl >/dev/null
    wheel=$(echo "$work"/wheel/*.whl)
    # The extension is optional in an installation, where torch's matmuls do its work; a wheel must have it.
    "$python" -m zipfile --list "$wheel" | grep --fixed-strings treeshare/native/_kernels.so >/dev/null || {
        echo "build_wheels.sh: $compiler does not compile the kernels for $architecture; see what it says:" \
            "$compiler -fsyntax-only -fopenmp treeshare/native/*.cpp" >&2
        exit 1
    }
    shown=$("$work/tools/bin/auditwheel" show "$wheel" | tr '\n' ' ')
    needed=$(grep --only-matching --perl-regexp 'following platform tag: "manylinux_\K2_[0-9]+' <<<"$shown" | tr _ .) || true
    [ -n "$needed" ] && [ "$(printf '%s\n' "$needed" "$glibc" | sort --version-sort | tail -1)" = "$glibc" ] || {
        echo "build_wheels.sh: expected nothing newer than glibc $glibc, and auditwheel says: $shown" >&2
        exit 1
    }
    cp "$wheel" "$out/"
    echo "$out/$(basename "$wheel")"
done
