#!/usr/bin/env bash
# Sets up .venv and runs the tests, as many at a time as there are cores (8 at most, for their memory).
# Usage: scripts/test.sh [--coverage] [ARGUMENTS OF PYTEST]     e.g. -n 0 for one at a time
# --coverage tells which lines and branches of autoseg/ no test takes; it fails where a tenth of the
# branches is not taken.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh dev
python=.venv/bin/python
export OMP_NUM_THREADS=1  # the cores are taken
pytest=(-m pytest --numprocesses auto --maxprocesses 8 --dist worksteal)

[ "${1:-}" = --coverage ] || exec "$python" "${pytest[@]}" "$@"

shift
status=0
"$python" -m coverage erase
"$python" -m coverage run "${pytest[@]}" "$@" || status=$?
"$python" -m coverage combine --quiet
"$python" -m coverage report
"$python" -m coverage json --quiet -o - | "$python" scripts/branch_coverage.py || status=$?
exit "$status"
