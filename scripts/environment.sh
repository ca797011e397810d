# Sourced by the scripts beside it: makes .venv with what they need, once for each state of the requirement files.
# Usage: source scripts/environment.sh REQUIREMENT_FILE...

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ ! -x .venv/bin/python ]; then
  echo "== creating .venv with $(${PYTHON:-python3} --version)"
  "${PYTHON:-python3}" -m venv .venv
fi
for requirements in "$@"; do
  stamp=".venv/.installed-$(cat "$requirements" | sha256sum | cut -c1-16)"
  if [ ! -f "$stamp" ]; then
    echo "== installing $requirements (minutes on the first run)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
    touch "$stamp"
  fi
done
export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
