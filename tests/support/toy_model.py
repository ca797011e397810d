"""A toy model as the quickstart trains it, in two thirds of the updates and one process: 3 minutes of one core."""

from __future__ import annotations

# What of the repository the commands of a page need beside them.
CODE = ("configs", "model", "scripts", "utils", "train_ds.py", "chat.py", "merge_lora_weights_and_save_hf_model.py")
# They leave it in runs/toy/hf_model.
TOY_MODEL = (
    "python scripts/make_toy_world.py --out toy_world --num_train 400 --num_val 1 --num_test 1",
    "python train_ds.py --config configs/tiny_cpu.json --version toy_world/llava-toy --vision-tower toy_world/clip-toy "
    "--dataset_dir toy_world/dataset --exp_name toy --epochs 1 --steps_per_epoch 320",
    "python merge_lora_weights_and_save_hf_model.py --weight runs/toy/ckpt_model --save_path runs/toy/hf_model "
    "--precision fp32",
)
