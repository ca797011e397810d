"""Checkpoints of a run: written, read back, and put together for a merge."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.errors import InputError
from utils import dist


def save_checkpoint(engine: Any, folder: Path, *, update: int, state: dict[str, Any]) -> None:
    """Write ``folder/global_step<update>``, then point ``latest`` at it and drop older ones."""
    tag = f"global_step{update}"
    engine.save_checkpoint(str(folder), tag=tag, client_state=state)
    dist.barrier()
    if dist.is_main():
        for old in folder.glob("global_step*"):
            if old.name != tag:
                shutil.rmtree(old)
    dist.barrier()


def load_checkpoint(engine: Any, folder: Path) -> dict[str, Any]:
    """Restore weights, optimizer and schedule from the folder that holds ``latest``; returns the saved state.

    The schedule's position is restored; its rates are those of this run, whose --lr or --epochs may be new.
    """
    if not (folder / "latest").is_file():
        raise InputError(f"--resume {folder}: no file named latest; give the ckpt_model folder of a run")
    base_rates = list(engine.lr_scheduler.base_lrs)
    try:
        path, state = engine.load_checkpoint(str(folder))
    except (RuntimeError, KeyError, AssertionError, ValueError, FileNotFoundError) as err:
        raise InputError(
            f"checkpoint {folder} does not fit this run ({str(err).splitlines()[0]}); resume with the flags it was "
            "started with, or choose another --exp_name"
        ) from err
    if path is None:
        raise InputError(f"checkpoint {folder} is incomplete; remove it or choose another --exp_name")
    _set_rates(engine, base_rates)
    return state


def _set_rates(engine: Any, base_rates: list[float]) -> None:
    """A checkpoint brings the rate of its own schedule, which is zero after the last update of a shorter run."""
    schedule = engine.lr_scheduler
    schedule.base_lrs = base_rates
    rates = [rate * factor(schedule.last_epoch) for rate, factor in zip(base_rates, schedule.lr_lambdas, strict=True)]
    schedule._last_lr = rates
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def consolidate_zero(folder: Path) -> dict[str, Tensor]:
    """A ZeRO checkpoint folder -> float32 weights, as ``zero_to_fp32.py`` gives them.

    DeepSpeed unpickles these files; give only folders that your own runs wrote.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return get_fp32_state_dict_from_zero_checkpoint(str(folder))
