#!/usr/bin/env bash
# The test suite, from nothing: makes .venv if need be, checks style, spelling and types, runs the tests.
# --fast: style and the quick tests, none of which launches a process.
# --all: also the tests marked long, which take another ten minutes on two cores.
# Usage: bash scripts/test.sh [--fast | --all] [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt tests/requirements.txt

fast=no tests="not long"
case "${1:-}" in
  --fast) fast=yes tests="not slow" && shift ;;
  --all) tests="" && shift ;;
esac
echo "== ruff"
ruff check .
ruff format --check .
if [ "$fast" = no ]; then
  echo "== codespell"
  codespell
  # It takes one core for as long as half a minute; what it says is shown after the tests.
  found_types=$(mktemp)
  basedpyright >"$found_types" 2>&1 &
  pyright=$!
  trap 'kill "$pyright" 2>/dev/null || true; rm "$found_types"' EXIT
fi
echo "== pytest"
# A process per core, at most four; each takes whole files, and several threads in each would only wait for another.
# Twenty failures are enough to know: where training hangs, each test of it waits for its time limit.
export OMP_NUM_THREADS=1
failed=0
python -m pytest -m "$tests" -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --maxfail=20 --durations=10 "$@" ||
  failed=$?
if [ "$fast" = no ]; then
  echo "== pyright"
  wait "$pyright" || failed=$?
  cat "$found_types"
fi
exit "$failed"
