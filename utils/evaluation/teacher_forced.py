"""Teacher-forced validation: the true answer with its token groups is fed in, and only masks are judged.

Pixels that a dataset marks as not counting (ReasonSeg) are left out of both areas, as in the release.

This is the release's protocol for referring and reasoning sets. It is not generation: see generative.py.
"""

from __future__ import annotations

from typing import Any

import torch

from model.structures import Batch
from utils import dist
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.mixture import ValDataset
from utils.data.sources import Source

from .metrics import IoUMeter


@torch.no_grad()
def validate_teacher_forced(
    network: Any,
    source: Source,
    encoder: Encoder,
    collator: Collator,
    *,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> IoUMeter:
    """IoU of every target of a validation set; samples are divided over the processes, none is counted twice.

    Args:
        network: called with a Batch, returns a PixelLMOutput.
    Raises:
        InputError: from any sample, which it names: evaluation never skips one.
    """
    network.eval()
    meter = IoUMeter()
    dataset = ValDataset(source, encoder)
    mine = range(dist.rank(), len(source), dist.world_size())
    with dist.stop_together():
        for first in range(0, len(mine), batch_size):
            samples = [dataset[index] for index in mine[first : first + batch_size]]
            batch: Batch = collator(samples).to(device, dtype)
            output = network(batch)
            for logits, masks, ignore in zip(output.mask_logits, batch.masks, batch.ignore, strict=True):
                predictions = logits > 0
                if ignore is not None:
                    predictions, masks = predictions & ~ignore, masks & ~ignore
                for prediction, truth in zip(predictions.cpu().numpy(), masks.cpu().numpy(), strict=True):
                    meter.add(prediction, truth)
    network.train()
    return meter.all_reduce(dist.all_reduce_sum, device=device)
