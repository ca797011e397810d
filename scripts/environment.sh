# Sourced by the scripts beside it: makes .venv with what they need, once for each state of the files that say so.
# Usage: source scripts/environment.sh REQUIREMENT_FILE...

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# requires-python ">=3.11,<3.14" is written here as "11 14".
read -r oldest end < <(sed -nE 's/^requires-python = ">=3\.([0-9]+),<3\.([0-9]+)".*/\1 \2/p' pyproject.toml)
python="${PYTHON:-python3}" next="PYTHON=python3.$((end - 1)) bash $0"
if [ -x .venv/bin/python ]; then
  python=.venv/bin/python next="rm -r .venv && $next"
fi
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || echo "not there")
if [[ ! $found =~ ^3\.([0-9]+)$ ]] || ((BASH_REMATCH[1] < oldest || BASH_REMATCH[1] >= end)); then
  echo "error: Python ($python) is $found; expected 3.$oldest to 3.$((end - 1)); try: $next" >&2
  exit 2
fi

# pip_once FILE ARGUMENT...: pip install, unless that was done for this state of FILE and constraints.txt.
pip_once() {
  local file="$1" stamp=".venv/.installed-${1//\//-}" state
  shift
  state=$(cat "$file" constraints.txt | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    echo "== installing $file (minutes on the first run)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"
    echo "$state" >"$stamp"
  fi
}

if [ ! -x .venv/bin/python ]; then
  echo "== creating .venv with Python $found"
  "$python" -m venv .venv
fi
for requirements in "$@"; do
  pip_once "$requirements" -c constraints.txt -r "$requirements"
done
# Without build isolation nothing is downloaded: torch has brought setuptools.
pip_once pyproject.toml --no-deps --no-build-isolation -e .
export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
