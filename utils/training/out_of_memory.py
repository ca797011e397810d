"""Memory that runs out: one line that says in what, how much was asked for, and what takes less."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from utils import dist
from utils.cli.config import RunConfig

from .deepspeed_config import deepspeed_settings

# CUDA's allocator has a class of its own; the CPU's, cuBLAS and NCCL raise RuntimeError.
_WORDS = re.compile(r"out of memory|can't allocate memory|ALLOC_FAILED", re.IGNORECASE)
_TRIED = re.compile(r"tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)", re.IGNORECASE)
_FREE = re.compile(r"of which ([\d.]+ \w+) is free")


Phase = Literal["start", "update", "validation"]


@contextmanager
def memory_told(
    phase: Phase, run: RunConfig, device: torch.device, *, update: int = 0, whereabouts: Callable[[], str]
) -> Iterator[None]:
    """End the run in one line if memory runs out in the block.

    Args:
        update: the one that is made, or the last one before the validation.
        whereabouts: one sentence that says where the run will go on.
    Raises:
        InputError: then; of several processes that meet it, the first one speaks. The others may know nothing of it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as err:
        if not is_out_of_memory(err):
            raise
        what = {
            "start": "the start",
            "update": f"update {update}",
            "validation": f"the validation after update {update}",
        }
        where = str(device) if dist.world_size() == 1 else f"{device} of process {dist.rank()}"
        advice = advice_for(run, phase, on_gpu=device.type == "cuda")
        message = f"out of memory in {what[phase]}, on {where} ({describe(err)}); {advice}. {whereabouts()}"
        told_by = dist.StoppedHere if dist.is_first_to("out_of_memory") else dist.StoppedByPeer
        raise told_by(message) from err


def is_out_of_memory(error: BaseException) -> bool:
    """Of a device or of the machine."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and _WORDS.search(str(error)) is not None
    )


def describe(error: BaseException) -> str:
    """How much was asked for, and how much there was; the first line of the error if it does not say."""
    tried, free = _TRIED.search(str(error)), _FREE.search(str(error))
    if not tried:
        return (str(error).splitlines() or [type(error).__name__])[0]
    amount, unit = tried.groups()
    size = f"{int(amount) / 2**30:.2f} GiB" if unit == "bytes" else f"{amount} {unit}"
    return f"{size} more were asked for, {free[1]} are free" if free else f"{size} more were asked for"


def advice_for(run: RunConfig, phase: Phase, *, on_gpu: bool) -> str:
    """What takes less memory and is not done yet; first what leaves the rest of the run as it is."""
    choices = []
    if phase == "validation" and run.val_batch_size > 1:
        choices.append("--val_batch_size=1")
    if phase == "update":
        if run.batch_size > 1:
            smaller = max(size for size in range(1, run.batch_size) if run.batch_size % size == 0)
            passes = run.grad_accumulation_steps * run.batch_size // smaller
            same = ", which keeps the update the same" if run.loss_normalization == "global" else ""
            choices.append(f"--batch_size={smaller} --grad_accumulation_steps={passes}{same}")
        if run.recomputation != "always":
            choices.append("--activation_checkpointing=always")
    if on_gpu:
        zero = deepspeed_settings(run).get("zero_optimization", {})
        if zero.get("stage", 0) < 3 and dist.world_size() > 1:
            choices.append("ZeRO-3 in --deepspeed_config")
        if "offload_optimizer" not in zero and run.optimizer != "muon":
            choices.append("offload_optimizer in --deepspeed_config")
    else:
        choices.append("fewer --workers, or fewer processes on this machine")
    if run.precision == "fp32":
        choices.append("--precision=bf16")
    choices.append("devices with more memory" if on_gpu else "more memory")
    return f"give {'; or '.join(choices)}"
