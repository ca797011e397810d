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

from .engine import Engine

# DeepSpeed's names: the file that says which step is the last whole one, and the folder of a step.
LATEST = "latest"
_STEP = "global_step"


def step_names(folder: Path) -> list[str]:
    """The steps that a checkpoint folder holds, earliest first; none if there is no such folder."""
    return sorted((path.name for path in folder.glob(f"{_STEP}*")), key=lambda name: (len(name), name))


def save_checkpoint(engine: Engine, folder: Path, *, update: int, state: dict[str, Any]) -> None:
    """Write ``folder/global_step<update>``, then point ``latest`` at it and drop older ones.

    Args:
        state: what ``load_checkpoint`` returns.
    """
    tag = f"{_STEP}{update}"
    engine.save_checkpoint(str(folder), tag=tag, client_state=state)
    dist.barrier()
    if dist.is_main():
        for old in step_names(folder):
            if old != tag:
                shutil.rmtree(folder / old)
    dist.barrier()


def load_checkpoint(engine: Engine, folder: Path) -> dict[str, Any]:
    """Restore weights, optimizer and schedule from the folder that holds ``latest``; returns the saved state.

    The schedule's position is restored; its rates are those of this run, whose --lr or --epochs may be new.

    Raises:
        InputError: if the folder is no checkpoint, is incomplete, or does not fit the engine.
    """
    if not (folder / LATEST).is_file():
        raise InputError(f"--resume {folder}: no file named {LATEST}; give the ckpt_model folder of a run")
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


def _set_rates(engine: Engine, base_rates: list[float | Tensor]) -> None:
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

    state = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    assert state is not None  # it has no value only for kinds of checkpoints that it has already refused
    return state
