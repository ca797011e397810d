"""Teacher-forced validation: the true answer with its token groups is fed in, and only masks are judged.

Pixels that a dataset marks as not counting (ReasonSeg) are left out of both areas, as in the release.

This is the release's protocol for referring and reasoning sets. It is not generation: see generative.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from model.structures import Batch, PixelLMOutput
from utils import dist
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.mixture import ValDataset
from utils.data.sources import Source

from .blanks import Blanks, count_blanks
from .metrics import IoUMeter


class Network(Protocol):
    """What validation needs of a network: a module, or the DeepSpeed engine around one."""

    def __call__(self, **inputs: Any) -> PixelLMOutput: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


@dataclass(frozen=True)
class TeacherForced:
    """What was found, of all processes.

    Attributes:
        meter: IoU of every target.
        blanks: how many predictions show nothing.
    """

    meter: IoUMeter
    blanks: Blanks


@torch.no_grad()
def validate_teacher_forced(
    network: Network,
    source: Source,
    encoder: Encoder,
    collator: Collator,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
    before_pass: Callable[[], object] = lambda: None,
) -> TeacherForced:
    """IoU of every target of a validation set; samples are divided over the processes, none is counted twice.

    Every process makes the same number of forward passes, because under ZeRO-3 a pass gathers weights from all
    processes. A process that has one sample less than the others repeats another one without counting it.

    Args:
        batch_size: samples per process and forward pass.
        before_pass: called by all processes at the same time; what it raises ends the validation.
    Returns:
        the score of all processes, on each of them.
    Raises:
        InputError: from any sample, which it names: evaluation never skips one.
    """
    score = _Score(device)
    network.eval()
    dataset = ValDataset(source, encoder)
    per_process = -(-len(source) // dist.world_size())
    mine = range(dist.rank(), per_process * dist.world_size(), dist.world_size())
    for first in range(0, per_process, batch_size):
        before_pass()
        indices = mine[first : first + batch_size]
        # Before the pass, not after the last one: the others must not wait for weights of a process that has stopped.
        with dist.stop_together():
            samples = [dataset[index % len(source)] for index in indices]
        batch = collator(samples).to(device, dtype)
        score.add(network(**batch.inputs()), batch, num_images=sum(index < len(source) for index in indices))
    network.train()
    return score.of_all_processes()


@torch.no_grad()
def score_batches(
    network: Network, batches: Iterable[Batch], *, device: torch.device, dtype: torch.dtype
) -> TeacherForced:
    """The same for batches that are at hand; every process must have as many."""
    score = _Score(device)
    network.eval()
    for on_cpu in batches:
        batch = on_cpu.to(device, dtype)
        score.add(network(**batch.inputs()), batch, num_images=len(batch.masks))
    network.train()
    return score.of_all_processes()


class _Score:
    """Counts of one process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._meter = IoUMeter()
        self._blanks = torch.zeros(3, dtype=torch.long, device=device)

    def add(self, output: PixelLMOutput, batch: Batch, *, num_images: int) -> None:
        """Count the targets of the first images of a batch."""
        for image in range(num_images):
            logits, masks = output.photo_logits[image], batch.masks[image]
            self._blanks += count_blanks([logits], [masks])
            ignore = batch.ignore[image] if batch.ignore else None
            self._add_pairs(logits > 0, masks, ignore)

    def _add_pairs(self, predictions: Tensor, masks: Tensor, ignore: Tensor | None) -> None:
        if ignore is not None:
            predictions, masks = predictions & ~ignore, masks & ~ignore
        for prediction, truth in zip(predictions.cpu().numpy(), masks.cpu().numpy(), strict=True):
            self._meter.add(prediction, truth)

    def of_all_processes(self) -> TeacherForced:
        meter = self._meter.all_reduce(dist.all_reduce_sum, device=self._device)
        return TeacherForced(meter, Blanks(*dist.all_reduce_sum(self._blanks).tolist()))
