#!/usr/bin/env bash
# From an empty machine to a trained, merged, evaluated and chatting model, on the embedded toy world.
# Run it again and it goes on from what exists; remove toy_world/ and runs/toy/ to start over.
# --demo: at the end, show the model on a web page, which opens in a browser.
# Usage: bash scripts/quickstart.sh [--demo]
set -euo pipefail
needed=(requirements.txt)
if [ "$*" = "--demo" ]; then
  needed+=(requirements-demo.txt)
elif [ $# -gt 0 ]; then
  echo "error: unknown: $*; usage: bash scripts/quickstart.sh [--demo]" >&2
  exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" "${needed[@]}"

WORLD=toy_world
RUN=runs/toy
mkdir -p "$RUN"

# stage NAME COMMAND...: say what runs, run it, and note its seconds for the final table.
stage() {
  local name="$1" started=$SECONDS
  shift
  printf '\n== %s\n   %s\n' "$name" "$*"
  "$@"
  printf '%s\t%s\n' "$name" $((SECONDS - started)) >>"$RUN/stages.tsv"
}

processes=$(python -c "import torch; print(torch.cuda.device_count() or 2)")

stage "toy world" python scripts/make_toy_world.py --out "$WORLD"

stage "training" deepspeed --num_gpus "$processes" --master_port "${MASTER_PORT:-24999}" train_ds.py \
  --config configs/tiny_cpu.json --version "$WORLD/llava-toy" --vision-tower "$WORLD/clip-toy" \
  --dataset_dir "$WORLD/dataset" --exp_name toy

if [ "$RUN/hf_model/config.json" -nt "$RUN/ckpt_model/latest" ]; then
  printf '\n== merge: %s is up to date\n' "$RUN/hf_model"
else
  stage "merge" python merge_lora_weights_and_save_hf_model.py --version "$WORLD/llava-toy" \
    --vision-tower "$WORLD/clip-toy" --weight "$RUN/ckpt_model" --save_path "$RUN/hf_model" --precision fp32
fi

if [ "$RUN/evaluation/report.html" -nt "$RUN/hf_model/config.json" ]; then
  printf '\n== evaluation: %s is up to date\n' "$RUN/evaluation"
else
  stage "evaluation" python scripts/evaluate.py --version "$RUN/hf_model" --precision fp32 \
    --dataset_dir "$WORLD/dataset" --val_dataset "MultiReasonSeg|test_less||MultiReasonSeg|test_many" \
    --output_dir "$RUN/evaluation" --overwrite  # of an earlier model
fi

example=$(python scripts/quickstart_summary.py example --dataset_dir "$WORLD/dataset")
stage "chat" python chat.py --version "$RUN/hf_model" --precision fp32 --vis_save_path "$RUN/chat" \
  --image "${example%%|*}" --prompt "${example#*|}" --output_json "$RUN/chat/answer.json"

printf '\n== summary\n'
python scripts/quickstart_summary.py table --run "$RUN"

if [ "$*" = "--demo" ]; then
  printf '\n== web page\n'
  exec python scripts/demo.py --version "$RUN/hf_model" --precision fp32 --open
fi
