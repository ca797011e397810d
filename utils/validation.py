"""Teacher-forced validation: the true answer with its token groups is fed in, and only masks are judged.

This is the release's protocol for referring and reasoning sets. It is not generation: see utils/evaluation.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from model.structures import Batch

from . import dist
from .data.collate import Collator
from .data.encode import Encoder
from .data.sources import Source
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
    """
    network.eval()
    meter = IoUMeter()
    mine = range(dist.rank(), len(source), dist.world_size())
    with dist.stop_together():
        for first in range(0, len(mine), batch_size):
            samples = [
                encoder(source.get(index, np.random.default_rng(0)), truncate=False)
                for index in mine[first : first + batch_size]
            ]
            batch: Batch = collator(samples).to(device, dtype)
            output = network(batch)
            for logits, masks in zip(output.mask_logits, batch.masks, strict=True):
                for prediction, truth in zip((logits > 0).cpu().numpy(), masks.cpu().numpy(), strict=True):
                    meter.add(prediction, truth)
    network.train()
    return meter.all_reduce(dist.all_reduce_sum, device=device)
