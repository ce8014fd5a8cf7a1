#!/usr/bin/env bash
# Make .venv with the packages of a requirements file; does nothing if that is done already.
#   bash scripts/setup.sh [requirements.txt]
# PYTHON=/path/to/python chooses the interpreter; default: the first Python >= 3.12 found.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/help.bash"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
requirements=${1:-requirements.txt}

is_suitable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1
}

has_pip() {
    is_suitable .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1
}

find_python() {
    local candidate
    if [ -n "${PYTHON:-}" ]; then
        is_suitable "$PYTHON" && echo "$PYTHON" && return
        echo "error: PYTHON=$PYTHON is not a Python >= 3.12 with venv" >&2
        return 1
    fi
    for candidate in python3.14 python3.13 python3.12 python3 python \
        "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[2-9]*/bin/python "${HOME:-}"/mini{conda,forge}3/bin/python; do
        if is_suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python >= 3.12 with venv found; install one (Debian and Ubuntu: python3.12-venv, else" \
        "pyenv, conda or uv), or name it: PYTHON=/path/to/python bash scripts/setup.sh" >&2
    return 1
}

installed="$requirements: installed in .venv; to use it: source .venv/bin/activate"
wanted=$(cat requirements.txt "$requirements" | cksum)
stamp=.venv/installed-$(basename "$(dirname "$(realpath "$requirements")")")-requirements
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && has_pip; then
    echo "$installed"
    exit 0
fi
if ! has_pip; then
    python=$(find_python)
    echo "making .venv with $("$python" --version)"
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "installing $requirements (PyTorch is large: several minutes on a slow connection)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$requirements"
echo "$wanted" >"$stamp"
echo "$installed"
