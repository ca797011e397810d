#!/usr/bin/env bash
# The tests of what stands on other libraries, with the oldest versions that requirements.txt allows.
# These lie in .venv/oldest and hide those of .venv; torch, DeepSpeed and the test tools are the same in both.
# Usage: bash scripts/test_oldest.sh [pytest arguments]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" requirements.txt tests/requirements.txt

if [ "$found" != "3.$oldest" ]; then
  echo "error: .venv has Python $found; the oldest versions are for 3.$oldest; try:" \
    "rm -r .venv && PYTHON=python3.$oldest bash $0" >&2
  exit 2
fi
if [ ! -x .venv/oldest/bin/deepspeed ]; then
  echo "== creating .venv/oldest"
  .venv/bin/python -m venv --without-pip .venv/oldest
  packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "import site; site.addsitedir('$packages')" >".venv/oldest/lib/python$found/site-packages/under.pth"
  # DeepSpeed's launcher starts the interpreter of its own first line.
  sed "1s|.*|#!$PWD/.venv/oldest/bin/python|" .venv/bin/deepspeed >.venv/oldest/bin/deepspeed
  chmod +x .venv/oldest/bin/deepspeed
fi
pip_once .venv/oldest constraints-oldest.txt requirements.txt -r requirements.txt
export PATH="$PWD/.venv/oldest/bin:$PATH"

python -m utils.cli.env
echo "== pytest"
export OMP_NUM_THREADS=1
python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations=10 \
  tests/model tests/utils tests/runs/test_pipeline.py "$@"
