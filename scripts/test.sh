#!/usr/bin/env bash
# Sets up .venv and runs the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh dev
exec .venv/bin/python -m pytest "$@"
