#!/usr/bin/env bash
# Set up .venv and run the tests in parallel, a process more than cores (at most 8, to limit memory).
# Usage: scripts/test.sh [--coverage] [ARGUMENTS OF PYTEST]     e.g. -n 0 for one at a time
# --coverage reports the lines and branches of autoseg/ that no test covers; it fails if less than 90 %
# of the branches are covered.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh dev
python=.venv/bin/python
export OMP_NUM_THREADS=1  # one process per core is running already
unset PYTHONDONTWRITEBYTECODE  # else each of many processes compiles the package again
pytest=(-m pytest --numprocesses auto --maxprocesses 8 --dist loadfile)

[ "${1:-}" = --coverage ] || exec "$python" "${pytest[@]}" "$@"

shift
status=0
"$python" -m coverage erase
"$python" -m coverage run "${pytest[@]}" "$@" || status=$?
"$python" -m coverage combine --quiet
"$python" -m coverage report
"$python" -m coverage json --quiet -o - | "$python" scripts/branch_coverage.py || status=$?
exit "$status"
