"""RunConfig -> the dictionary that DeepSpeed wants: a ZeRO file from configs/ and what the flags say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from model.errors import InputError
from model.files import is_file, read_object
from model.values import Schema
from utils.cli.config import RunConfig

_FROM_FLAGS = {
    "train_micro_batch_size_per_gpu": "--batch_size",
    "gradient_accumulation_steps": "--grad_accumulation_steps",
    "optimizer": "--optimizer, --lr, --muon_lr, --beta1 and --beta2",
    "scheduler": "--warmup_steps, --epochs and --steps_per_epoch",
    "fp16": "--precision",
    "bf16": "--precision",
}


class _Offload(TypedDict, total=False):
    device: Literal["none", "cpu", "nvme"]


class _Zero(TypedDict, total=False):
    stage: Annotated[int, Field(ge=0, le=3)]
    offload_optimizer: _Offload | None
    cpu_offload: bool | None


class _DataTypes(TypedDict, total=False):
    grad_accum_dtype: str | None


class _Settings(TypedDict, total=False):
    """What is read here of a configuration; DeepSpeed checks the rest."""

    zero_optimization: _Zero
    data_types: _DataTypes


_SCHEMA = Schema(_Settings)


def shards_parameters(settings: dict[str, Any]) -> bool:
    """Whether each process keeps only its part of the weights (ZeRO-3)."""
    return settings.get("zero_optimization", {}).get("stage") == 3


def deepspeed_settings(run: RunConfig) -> dict[str, Any]:
    """Read ``--deepspeed_config`` (relative to the repository when it is not found from here) and add the flags.

    Raises:
        InputError: if the file is missing or damaged, sets what flags decide, or asks for what does not go together.
    """
    path = Path(run.deepspeed_config)
    if not is_file(path):
        path = Path(__file__).resolve().parents[2] / run.deepspeed_config
    remedy = "give a DeepSpeed configuration, such as configs/ds_zero2.json"
    settings = read_object(path, remedy=remedy)
    for key, flags in _FROM_FLAGS.items():
        if key in settings:
            raise InputError(f"--deepspeed_config {path} sets {key!r}, which {flags} decide; remove it from the file")
    checked = _SCHEMA.check(settings, where=f"--deepspeed_config {path}", remedy=remedy)
    zero = checked.get("zero_optimization", {})
    if run.load_in_4bit and zero.get("stage") == 3:
        raise InputError(
            f"--load_in_4bit does not go with ZeRO stage 3 of --deepspeed_config {path}, which divides weights but not "
            "their scales; give stage 0, 1 or 2, or train in 16 bits"
        )
    if offloads(zero, "optimizer"):
        _check_offload(zero, run, path)
        # Else DeepSpeed insists on an optimizer of its own, which it compiles on this machine.
        settings["zero_force_ds_cpu_optimizer"] = False
    if run.val_generate and zero.get("stage") == 3:
        raise InputError(
            f"--val_generate does not go with ZeRO stage 3 of --deepspeed_config {path}, which leaves no process the "
            "whole network; leave it out, and score the merged model with scripts/evaluate.py, or set stage 0, 1 or 2"
        )
    settings["train_micro_batch_size_per_gpu"] = run.batch_size
    settings["gradient_accumulation_steps"] = run.grad_accumulation_steps
    if run.precision != "fp32":
        settings[run.precision] = {"enabled": True}
    if run.optimizer == "muon":
        # Muon's updates, whose size is fixed, stand in the place of gradients when DeepSpeed clips.
        settings["gradient_clipping"] = 0.0
        _check_muons_sums(checked, run, path)
        if zero.get("stage") == 3:
            # Muon needs whole gradients, and DeepSpeed refuses to scatter them.
            settings["zero_optimization"]["reduce_scatter"] = False
    return settings


def offloads(zero: Mapping[str, Any], what: Literal["optimizer", "param"]) -> bool:
    """Whether the optimizer or the parameters lie off the device; ``cpu_offload`` is an old spelling of the first."""
    section = zero.get(f"offload_{what}") or {}
    return section.get("device", "none") != "none" or (what == "optimizer" and bool(zero.get("cpu_offload")))


def _check_offload(zero: _Zero, run: RunConfig, path: Path) -> None:
    if zero.get("stage", 0) == 0:
        raise InputError(
            f"--deepspeed_config {path} offloads the optimizer at ZeRO stage 0, which divides nothing; set stage 1, 2 "
            "or 3, or remove offload_optimizer"
        )
    if run.optimizer == "muon":
        raise InputError(
            f"--optimizer muon does not go with the offloaded optimizer of --deepspeed_config {path}: DeepSpeed has an "
            "open fault there (its PR 8464); use --optimizer adamw, or remove offload_optimizer from the file"
        )


def _check_muons_sums(settings: _Settings, run: RunConfig, path: Path) -> None:
    """DeepSpeed 0.19.8 has a class of its own for ZeRO 1 with sums in float32, which makes nothing orthogonal."""
    sums = settings.get("data_types", {}).get("grad_accum_dtype")
    is_stage_1 = settings.get("zero_optimization", {}).get("stage") == 1
    if is_stage_1 and run.precision == "bf16" and sums not in (None, "bf16", "bfloat16"):
        raise InputError(
            f"--optimizer muon --precision bf16 does not go with grad_accum_dtype {sums} of --deepspeed_config {path} "
            "at ZeRO stage 1: DeepSpeed would train with plain gradients; set stage 2, or remove grad_accum_dtype"
        )
