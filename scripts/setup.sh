#!/usr/bin/env bash
# Makes .venv with everything that autoseg needs; does nothing (and needs no network) when it is there.
# Usage: scripts/setup.sh [EXTRAS]     e.g. scripts/setup.sh dev
# PYTHON names another interpreter than python3 (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."

extras=${1:-}
python=${PYTHON:-python3}
torch=2.13.0
ready=.venv/.ready-${extras:-plain}
wanted=$(cksum pyproject.toml)

[ -f "$ready" ] && [ "$(cat "$ready")" = "$wanted" ] && exit 0

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: $python is older than Python 3.11; name a newer one with PYTHON=..." >&2
    exit 2
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)

echo "setting up .venv (once; some minutes): 1 of 2, PyTorch" >&2
if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
    if command -v nvidia-smi >/dev/null; then
        "${pip[@]}" install "torch==$torch"
    else
        # The CPU build, so that no gigabytes of CUDA come along: from where pip is configured to
        # look, else from PyTorch's own index.
        "${pip[@]}" install "torch==$torch+cpu" 2>/dev/null ||
            "${pip[@]}" install "torch==$torch" --index-url https://download.pytorch.org/whl/cpu
    fi
fi
echo "2 of 2, autoseg and what else it needs" >&2
"${pip[@]}" install -e ".${extras:+[$extras]}"
echo "$wanted" >"$ready"
