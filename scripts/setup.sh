#!/usr/bin/env bash
# Create .venv with the dependencies of autoseg; if it exists, do nothing (and use no network).
# Usage: scripts/setup.sh [EXTRAS]     e.g. scripts/setup.sh dev
# PYTHON: another interpreter than python3 (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-}
python=${PYTHON:-python3}
torch=2.13.0
ready=.venv/.ready-${extras:-plain}
wanted=$(cksum pyproject.toml)

[ -f "$ready" ] && [ "$(cat "$ready")" = "$wanted" ] && exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is older than Python 3.11; choose a newer one with PYTHON=..." >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

echo "setting up .venv (only once; takes some minutes): 1 of 2, PyTorch" >&2
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    if command -v nvidia-smi >/dev/null; then
        "${pip[@]}" install "torch==$torch"
    else
        # The CPU build avoids gigabytes of CUDA: from pip's configured index, else from PyTorch's.
        "${pip[@]}" install "torch==$torch+cpu" 2>/dev/null ||
            "${pip[@]}" install "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
    fi
fi
echo "2 of 2, autoseg and its other dependencies" >&2
"${pip[@]}" install -e ".${extras:+[$extras]}"
echo "$wanted" >"$ready"
