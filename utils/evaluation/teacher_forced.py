"""Teacher-forced validation: the true answer with its token groups is fed in, and only masks are judged.

Pixels that a dataset marks as not counting (ReasonSeg) are left out of both areas, as in the release.

This is the release's protocol for referring and reasoning sets. It is not generation: see generative.py.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from model.structures import Batch, PixelLMOutput
from utils import dist
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.mixture import ValDataset
from utils.data.sources import Source

from .metrics import IoUMeter


class Network(Protocol):
    """What validation needs of a network: a module, or the DeepSpeed engine around one."""

    def __call__(self, **inputs: Any) -> PixelLMOutput: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...


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
) -> IoUMeter:
    """IoU of every target of a validation set; samples are divided over the processes, none is counted twice.

    Every process makes the same number of forward passes, because under ZeRO-3 a pass gathers weights from all
    processes. A process that has one sample less than the others repeats another one without counting it.

    Args:
        batch_size: samples per process and forward pass.
    Returns:
        the meter of all processes, on each of them.
    Raises:
        InputError: from any sample, which it names: evaluation never skips one.
    """
    network.eval()
    meter = IoUMeter()
    dataset = ValDataset(source, encoder)
    per_process = -(-len(source) // dist.world_size())
    mine = range(dist.rank(), per_process * dist.world_size(), dist.world_size())
    for first in range(0, per_process, batch_size):
        indices = mine[first : first + batch_size]
        # Before the pass, not after the last one: the others must not wait for weights of a process that has stopped.
        with dist.stop_together():
            samples = [dataset[index % len(source)] for index in indices]
        batch = collator(samples).to(device, dtype)
        _count(meter, network(**batch.inputs()), batch, num_images=sum(index < len(source) for index in indices))
    network.train()
    return meter.all_reduce(dist.all_reduce_sum, device=device)


def _count(meter: IoUMeter, output: PixelLMOutput, batch: Batch, *, num_images: int) -> None:
    """Add the targets of the first images of a batch to the meter."""
    for image in range(num_images):
        predictions, masks = output.photo_logits[image] > 0, batch.masks[image]
        ignore = batch.ignore[image] if batch.ignore else None
        if ignore is not None:
            predictions, masks = predictions & ~ignore, masks & ~ignore
        for prediction, truth in zip(predictions.cpu().numpy(), masks.cpu().numpy(), strict=True):
            meter.add(prediction, truth)
