"""RunConfig -> the dictionary that DeepSpeed wants: a ZeRO file from configs/ and what the flags say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import is_file, read_object
from utils.cli.config import RunConfig

_FROM_FLAGS = {
    "train_micro_batch_size_per_gpu": "--batch_size",
    "gradient_accumulation_steps": "--grad_accumulation_steps",
    "optimizer": "--optimizer, --lr, --muon_lr, --beta1 and --beta2",
    "scheduler": "--warmup_steps, --epochs and --steps_per_epoch",
    "fp16": "--precision",
    "bf16": "--precision",
}


def shards_parameters(settings: dict[str, Any]) -> bool:
    """Whether each process keeps only its part of the weights (ZeRO-3)."""
    return settings.get("zero_optimization", {}).get("stage") == 3


def deepspeed_settings(run: RunConfig) -> dict[str, Any]:
    """Read ``--deepspeed_config`` (relative to the repository when it is not found from here) and add the flags.

    Raises:
        InputError: if the file is missing or damaged, or sets what flags decide.
    """
    path = Path(run.deepspeed_config)
    if not is_file(path):
        path = Path(__file__).resolve().parents[2] / run.deepspeed_config
    settings = read_object(path, remedy="give a DeepSpeed configuration, such as configs/ds_zero2.json")
    for key, flags in _FROM_FLAGS.items():
        if key in settings:
            raise InputError(f"--deepspeed_config {path} sets {key!r}, which {flags} decide; remove it from the file")
    settings["train_micro_batch_size_per_gpu"] = run.batch_size
    settings["gradient_accumulation_steps"] = run.grad_accumulation_steps
    if run.precision != "fp32":
        settings[run.precision] = {"enabled": True}
    if run.optimizer == "muon":
        # Muon's updates, whose size is fixed, stand in the place of gradients when DeepSpeed clips.
        settings["gradient_clipping"] = 0.0
    return settings
