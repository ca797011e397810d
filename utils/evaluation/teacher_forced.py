"""Teacher-forced validation: the true answer with its token groups is fed in, and only masks are judged.

Pixels that a dataset marks as not counting (ReasonSeg) are left out of both areas, as in the release.

This is the release's protocol for referring and reasoning sets. It is not generation: see asking.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
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
    dataset = ValDataset(source, encoder)
    per_process = -(-len(source) // dist.world_size())
    mine = range(dist.rank(), per_process * dist.world_size(), dist.world_size())

    def passes() -> Iterator[tuple[Batch, int]]:
        for start in range(0, per_process, batch_size):
            before_pass()
            indices = mine[start : start + batch_size]
            # Indices beyond the end fill up: they repeat samples, and are not counted.
            with dist.stop_together():
                samples = [dataset[index % len(source)] for index in indices]
            yield collator(samples), sum(index < len(source) for index in indices)

    return _score(network, passes(), device=device, dtype=dtype)


def score_batches(
    network: Network, batches: Iterable[Batch], *, device: torch.device, dtype: torch.dtype
) -> TeacherForced:
    """The same for batches that are at hand; every process must have as many."""
    return _score(network, ((batch, len(batch.masks)) for batch in batches), device=device, dtype=dtype)


@torch.no_grad()
def _score(
    network: Network, passes: Iterable[tuple[Batch, int]], *, device: torch.device, dtype: torch.dtype
) -> TeacherForced:
    """Score every pass.

    Args:
        passes: batches, and how many images of each are counted: the first ones.
    """
    meter, blanks = IoUMeter(), torch.zeros(3, dtype=torch.long, device=device)
    network.eval()
    for on_cpu, num_images in passes:
        batch = on_cpu.to(device, dtype)
        output = network(**batch.inputs())
        for image in range(num_images):
            logits, masks = output.photo_logits[image], batch.masks[image]
            blanks += count_blanks([(logits > 0).sum((1, 2))], [masks])
            _add_pairs(meter, logits > 0, masks, batch.ignore[image] if batch.ignore else None)
    network.train()
    return TeacherForced(reduce_meter(meter, device=device), Blanks(*dist.all_reduce_sum(blanks).tolist()))


def reduce_meter(meter: IoUMeter, *, device: torch.device | str) -> IoUMeter:
    """The meter of all processes, on each of them."""
    # float64 holds pixel counts exactly up to 2**53.
    counters = torch.tensor(astuple(meter), dtype=torch.float64, device=device)
    iou_sum, *counts = dist.all_reduce_sum(counters).tolist()
    return IoUMeter(iou_sum, *map(int, counts))


def _add_pairs(meter: IoUMeter, predictions: Tensor, masks: Tensor, ignore: Tensor | None) -> None:
    """Count the targets of one image, (N_b, H_b, W_b) each."""
    if ignore is not None:
        predictions, masks = predictions & ~ignore, masks & ~ignore
    for prediction, truth in zip(predictions.cpu().numpy(), masks.cpu().numpy(), strict=True):
        meter.add(prediction, truth)
