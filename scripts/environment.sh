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

# pip_once ENVIRONMENT CONSTRAINTS FILE ARGUMENT...: pip install, unless that was done for this state of FILE and of
# both files of constraints: an environment over another one depends on both. Most modules are never imported, so each
# is compiled when it is.
pip_once() {
  local environment="$1" constraints="$2" file="$3" stamp="$1/.installed-${3//\//-}" state
  shift 3
  state=$(cat "$file" constraints.txt constraints-oldest.txt | sha256sum)
  if [ "$(cat "$stamp" 2>/dev/null)" != "$state" ]; then
    echo "== installing $file (minutes on the first run)"
    "$environment/bin/python" -m pip install --no-compile --quiet --disable-pip-version-check -c "$constraints" "$@"
    echo "$state" >"$stamp"
  fi
}

if [ ! -x .venv/bin/python ]; then
  echo "== creating .venv with Python $found"
  "$python" -m venv .venv
  # The pip that Python 3.11 brings takes twice as long, most of it on versions that are not wanted.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip ||
    echo "pip cannot be upgraded; the one that Python brings goes on" >&2
fi
for requirements in "$@"; do
  pip_once .venv constraints.txt "$requirements" -r "$requirements"
done
# Without build isolation nothing is downloaded: torch has brought setuptools, which warns of every editable installation.
PYTHONWARNINGS=ignore pip_once .venv constraints.txt pyproject.toml --no-deps --no-build-isolation -e .
export PATH="$PWD/.venv/bin:$PATH"
export TOKENIZERS_PARALLELISM=false
