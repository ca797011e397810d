"""Checkpoints of a run: written, read back, and put together for a merge."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.errors import InputError
from model.files import is_file, is_folder
from model.outputs import is_full
from utils import dist

from .engine import Engine

CHECKPOINTS = "ckpt_model"  # in a run directory: what DeepSpeed writes, one folder per step
# DeepSpeed's names: the file that says which step is the last whole one, and the folder of a step.
LATEST = "latest"
_STEP = "global_step"
# Of each trained parameter: the weight itself and AdamW's two moments in float32, and what lies around them.
_BYTES_PER_TRAINED_PARAMETER = 16


def step_folder(folder: Path, update: int) -> Path:
    """Where the checkpoint after this update lies."""
    return folder / f"{_STEP}{update}"


def is_step(folder: Path) -> bool:
    """Whether a folder is named as a step is."""
    return re.fullmatch(rf"{_STEP}[0-9]+", folder.name) is not None


def latest_step(folder: Path) -> Path | None:
    """The step that ``latest`` names, which is the last whole one; None if there is none."""
    file = folder / LATEST
    if not is_file(file):
        return None
    step = folder / file.read_text(encoding="utf-8", errors="replace").strip()
    return step if step.parent == folder and is_step(step) and is_folder(step) else None


def updates_of(weight: Path) -> int | None:
    """The updates that a checkpoint folder, or one step of it, has seen; None for weights that do not say so."""
    step = weight if is_step(weight) else latest_step(weight)
    return int(step.name.removeprefix(_STEP)) if step else None


def step_names(folder: Path) -> list[str]:
    """The steps that a checkpoint folder holds, earliest first; none if there is no such folder."""
    return sorted((path.name for path in folder.glob(f"{_STEP}*") if is_step(path)), key=lambda name: (len(name), name))


def save_checkpoint(engine: Engine, folder: Path, *, update: int, state: dict[str, Any]) -> None:
    """Write ``folder/global_step<update>``, then point ``latest`` at it and drop what that replaces.

    Only the step that ``latest`` named is dropped, and earlier ones, which a killed process may have left.

    Args:
        state: what ``load_checkpoint`` returns.
    Raises:
        InputError: if the disk is full. Nothing is dropped then.
    """
    step, before = step_folder(folder, update), latest_step(folder)
    names = step_names(folder)
    replaced = [] if before is None else names[: names.index(before.name) + 1]
    try:
        engine.save_checkpoint(str(folder), tag=step.name, client_state=state)
    except (OSError, RuntimeError) as err:
        if not is_full(err):
            raise
        free = shutil.disk_usage(folder).free / 2**30
        kept = f"{before} is whole: the run goes on from there" if before else "nothing was saved before"
        raise dist.StoppedHere(
            f"{step} cannot be written: the disk is full, or a quota is ({free:.2f} GiB free); make room and start the "
            f"run again ({kept})"
        ) from err
    dist.barrier()
    if dist.is_main():
        for name in replaced:
            if name != step.name:
                shutil.rmtree(folder / name)
    dist.barrier()


def check_free_space(network: nn.Module, folder: Path, *, num: int) -> None:
    """Before the first update: the disk takes the checkpoints of this run that will exist side by side.

    Args:
        network: in training precision, with ``requires_grad`` set on what is trained.
        num: of them, without those that are there: 2, because each is written before the one that it replaces is
            removed; 1 if there will be but one, or one is there.
    Raises:
        InputError: if it does not.
    """
    parameters = list(network.parameters())
    needed = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    needed += _BYTES_PER_TRAINED_PARAMETER * sum(
        parameter.numel() for parameter in parameters if parameter.requires_grad
    )
    free = shutil.disk_usage(folder).free
    if free < num * needed:
        raise InputError(
            f"{folder} has {free / 2**30:.1f} GiB free, but a checkpoint of this run takes about "
            f"{needed / 2**30:.1f} GiB, and {num} of them must fit; make room, or give another --log_base_dir"
        )


def load_checkpoint(engine: Engine, folder: Path) -> dict[str, Any]:
    """Restore weights, optimizer and schedule from the folder that holds ``latest``; returns the saved state.

    The schedule's position is restored; its rates are those of this run, whose --lr or --epochs may be new.

    Raises:
        InputError: if the folder is no checkpoint, is incomplete, or does not fit the engine.
    """
    base_rates = list(engine.lr_scheduler.base_lrs)
    try:
        path, state = engine.load_checkpoint(str(folder))
    except (AssertionError, IndexError, EOFError, OSError, pickle.UnpicklingError) as err:
        raise _damaged(folder, err) from err
    except (RuntimeError, KeyError, ValueError) as err:
        reason = next(iter(str(err).splitlines()), type(err).__name__)
        raise InputError(
            f"checkpoint {folder} does not fit this run ({reason}); resume with the flags it was started with, or "
            "choose another --exp_name"
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


def _damaged(folder: Path, err: Exception) -> InputError:
    return InputError(
        f"checkpoint {folder} is incomplete or damaged ({type(err).__name__}: {err}); copy it again, or take another"
    )


def consolidate_zero(folder: Path) -> dict[str, Tensor]:
    """A ZeRO checkpoint folder, or one step of it -> float32 weights, as ``zero_to_fp32.py`` gives them.

    DeepSpeed unpickles these files; give only folders that your own runs wrote.

    Raises:
        InputError: if ``latest`` names no step, or the step is incomplete or damaged.
    """
    step = folder if is_step(folder) else latest_step(folder)
    if step is None:
        found = ", ".join(step_names(folder)) or "no step at all"
        raise InputError(f"{folder / LATEST} names no step of the folder, which holds {found}; give one of them")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    try:
        state = get_fp32_state_dict_from_zero_checkpoint(str(step.parent), tag=step.name)
    except Exception as err:  # unpickling what is damaged can raise nearly anything
        raise _damaged(step, err) from err
    assert state is not None  # it has no value only for kinds of checkpoints that it has already refused
    return state
