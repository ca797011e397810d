#!/usr/bin/env bash
# The whole test suite, from nothing: makes .venv if need be, checks style, spelling and types, runs every test.
# --fast: style and the quick tests, none of which launches a process.
# Usage: bash scripts/test.sh [--fast] [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt tests/requirements.txt

fast=no
if [ "${1:-}" = --fast ]; then
  fast=yes
  shift
fi
echo "== ruff"
ruff check .
ruff format --check .
if [ "$fast" = no ]; then
  echo "== codespell"
  codespell
  echo "== pyright"
  basedpyright
fi
echo "== pytest"
# A process per core, at most four; each takes whole files, and several threads in each would only wait for another.
# Twenty failures are enough to know: where training hangs, each test of it waits for its time limit.
export OMP_NUM_THREADS=1
if [ "$fast" = yes ]; then
  set -- -m "not slow" "$@"
fi
python -m pytest -n auto --maxprocesses 4 --dist loadfile --maxfail=20 --durations=10 "$@"
