#!/usr/bin/env bash
# The whole test suite, from nothing: makes .venv if need be, checks style, runs every test.
# Usage: bash scripts/test.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt tests/requirements.txt

echo "== ruff"
ruff check .
ruff format --check .
echo "== pytest"
python -m pytest --durations=10 "$@"
