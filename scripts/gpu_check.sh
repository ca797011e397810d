#!/usr/bin/env bash
# What a GPU computes and what it costs, in one Markdown file and less than ten minutes: the tests of tests/gpu/, updates
# of training at 7B with random weights, and answers of that model. A part that fails, or takes longer than it may, is a
# line of the table with its reason. The exit code is 1 if the tests did not pass.
# Usage: bash scripts/gpu_check.sh [--cpu] [--size 7b|13b] [--output FILE] [--wheels DIR]
#   --cpu     without a GPU, on a tiny model: seconds, to try this script itself
#   --size    of language model and tower; default 7b
#   --output  default benchmarks/gpu_CARD.md
#   --wheels  packages that this Python lacks. They are unpacked aside; nothing is installed. Where there is a network:
#               pip download --only-binary=:all: --dest DIR pydantic
#               pip download --only-binary=:all: --no-deps --dest DIR pycocotools peft bitsandbytes
#             --python-version and --platform choose another Python and system than those of that machine.
# PYTHON=... names the Python; default is that of .venv, if it is there, else python3. No environment is made.
set -euo pipefail

fail() {
  echo "error: $1; bash scripts/gpu_check.sh --help lists the options" >&2
  exit 2
}

device=gpu size=7b output="" wheels=""
while [ $# -gt 0 ]; do
  case "$1" in
    --help | -h) sed -n '/^# /s/^# //p' "${BASH_SOURCE[0]}" && exit 0 ;;
    --cpu) device=cpu && shift && continue ;;
    --size) size="${2:-}" ;;
    --output) output="$(realpath -m "${2:-}")" ;;
    --wheels) wheels="$(realpath -m "${2:-}")" ;;
    *) fail "there is no option $1" ;;
  esac
  [ -n "${2:-}" ] || fail "$1 has no value"
  shift 2
done
[[ $size =~ ^(7b|13b)$ ]] || fail "--size is $size; expected 7b or 13b"
[ -z "$wheels" ] || compgen -G "$wheels/*.whl" >/dev/null || fail "--wheels $wheels has no wheels"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python="${PYTHON:-python3}"
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then
  python=.venv/bin/python
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
if [ $device = cpu ]; then
  export CUDA_VISIBLE_DEVICES=""
fi
if [ -n "$wheels" ]; then
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$work/packages" "$wheels"/*.whl ||
    fail "the wheels of $wheels do not fit $python"
  export PYTHONPATH="$work/packages:$PYTHONPATH"
fi

rows=()

# The file as far as it is known; whoever ends this script early has that much.
write() {
  {
    echo "# Checked and measured: $card"
    printf '\n%s, by scripts/gpu_check.sh. Versions are at the end.\n\n' "$(date +%F)"
    printf '| Part | Result | Seconds |\n|---|---|---:|\n'
    printf '%s\n' "${rows[@]}"
    cat "$work"/*.section 2>/dev/null || true
    printf '\n## Versions\n\n```text\n%s\n```\n' "$versions"
  } >"$work/report"
  cp "$work/report" "$output"
}

# row PART RESULT SECONDS
row() {
  echo "   $2"
  rows+=("| $1 | ${2//|/\\|} | $3 |")
  write
}

# part NAME SECONDS COMMAND...: what it prints becomes a section. Its exit code is that of the command.
part() {
  local name="$1" limit="$2" log="$work/${#rows[@]}" started=$SECONDS code=0 result
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=5 "$limit" "$@" >"$log.out" 2>"$log.err" || code=$?
  result=$(grep -E '^[0-9]+ (passed|failed|skipped|error)' "$log.out" | tail -n 1 || true)  # pytest's last line
  case $code in
    0) result="${result:-done}" ;;
    124) result="not done in $limit s" ;;
    137) result="killed: not done in $limit s, or out of memory" ;;
    *) result="failed: ${result:-$(cat "$log.out" "$log.err" | grep -v '^ *$' | tail -n 1)}" ;;
  esac
  if [ $code = 0 ] || grep -q '^FAILED\|^ERROR' "$log.out"; then
    printf '\n## %s\n\n%s\n' "$name" "$(grep -v '^[.sFEx]* *\[ *[0-9]*%\]$' "$log.out")" >"$log.section"
  fi
  row "$name" "$result" "$((SECONDS - started))"
  return $code
}

updates() {
  part "$1" "$2" "$python" scripts/benchmark.py train "${@:3}" || true
}

missing=$("$python" - <<'END'
import importlib.util
names = "torch transformers peft pydantic einops sentencepiece cv2 scipy pycocotools pytest deepspeed bitsandbytes"
print(*(name for name in names.split() if importlib.util.find_spec(name) is None))
END
)
card="no GPU"
versions=$("$python" -m utils.cli.env 2>&1) ||
  fail "$python cannot run this code: $(tail -n 1 <<<"$versions"); not installed: ${missing:-nothing}; see --wheels"
if found=$(grep -m 1 '^gpu 0:' <<<"$versions"); then
  card=$(sed -E 's/^gpu 0: *//; s/, [^,]*$//' <<<"$found")
elif [ $device = gpu ]; then
  fail "torch finds no GPU here; --cpu goes the same way without one"
fi
if [ -z "$output" ]; then
  name=$([ $device = cpu ] && echo cpu || sed -E 's/NVIDIA //; s/[^A-Za-z0-9]+/_/g' <<<"$card")
  output="$PWD/benchmarks/gpu_$name.md"
fi
mkdir -p "$(dirname "$output")"
echo "== $card -> $output"
row "packages" "$([ -z "$missing" ] && echo all there || echo "not installed: $missing; what needs them is left out")" "-"

code=0
if [ $device = cpu ]; then
  part "tests" 300 "$python" -m pytest -q -p no:xdist -p no:cacheprovider -rfEs --tb=short tests/gpu --gpu_tests_on_cpu || code=1
  updates "updates" 300 --size tiny --images 1 --conversations 2 --masks 1 --photo 40x30 --steps 1
  row "updates with flex_attention or compiled blocks; a large photo; answers" "left out with --cpu" "-"
else
  part "tests" 120 "$python" -m pytest -q -p no:xdist -p no:cacheprovider -rfEs --tb=short tests/gpu || code=1
  updates "updates" 110 --size "$size" --precision bf16 --steps 5 --compare
  updates "updates with flex_attention" 80 --size "$size" --precision bf16 --steps 5 --attn_implementation flex_attention
  updates "updates with compiled blocks" 100 --size "$size" --precision bf16 --steps 5 --compile
  updates "updates on a photo of 3000x2000 with 6 conversations and 66 masks" 90 --size "$size" --precision bf16 \
    --images 1 --conversations 6 --masks 11 --photo 3000x2000 --compare
  part "answers" 60 "$python" scripts/benchmark.py chat --size "$size" --precision bf16 --words 20 --repeats 2 || true
fi
echo "== $output"
exit $code
