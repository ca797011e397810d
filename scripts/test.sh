#!/usr/bin/env bash
# The whole test suite, from nothing: makes .venv if need be, checks style, runs every test.
# Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt tests/requirements.txt

echo "== ruff"
ruff check .
ruff format --check .
echo "== pytest"
# A process per core, at most four; each takes whole files, and several threads in each would only wait for another.
# Twenty failures are enough to know: where training hangs, each test of it waits for its time limit.
export OMP_NUM_THREADS=1
python -m pytest -n auto --maxprocesses 4 --dist loadfile --maxfail=20 --durations=10 "$@"
