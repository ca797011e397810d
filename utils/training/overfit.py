"""``--overfit_one_batch``: train on the first global batch again and again.

A check of a set-up, not a run: a set-up that can learn comes to draw the masks of a few photos that it sees in every
update. It keeps no checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from itertools import cycle
from math import isnan
from pathlib import Path

import torch

from model.configuration import PRECISIONS
from model.structures import Batch
from utils.cli.checklist import Checklist
from utils.cli.config import RunConfig
from utils.evaluation.metrics import IoUMeter
from utils.evaluation.teacher_forced import Network, score_batches

from .guards import preview_command
from .journal import Journal

logger = logging.getLogger(__name__)

NAME = "the one batch"  # in log.jsonl and TensorBoard, in the place of a validation set's
# Teacher-forced mask IoU at which a batch counts as learned.
LEARNED = 0.9


class OneBatch:
    """The part of this process in the first global batch.

    Args:
        run_dir: of the check, for the command that a warning names.
        batches: one for each forward pass of an update.
    """

    def __init__(self, run: RunConfig, run_dir: Path, batches: Iterable[Batch], *, device: torch.device) -> None:
        self._run, self._run_dir, self._device = run, run_dir, device
        self._batches = list(batches)

    def forever(self) -> Generator[Batch]:
        """The same forward passes in every update."""
        yield from cycle(self._batches)

    def score(self, network: Network, journal: Journal, *, update: int) -> None:
        """Write down the teacher-forced IoU of the batch, and after the last update what it means.

        Every process has to call this.
        """
        meter = score_batches(network, self._batches, device=self._device, dtype=PRECISIONS[self._run.precision]).meter
        journal.log_validation(update, NAME, meter)
        if update == self._run.total_updates:
            tell_result(meter, updates=update, preview=preview_command(self._run_dir))


def tell_result(meter: IoUMeter, *, updates: int, preview: str) -> None:
    """Say whether the batch was learned.

    Args:
        meter: after the last update, of all processes.
        preview: the command that shows the samples of the batch.
    """
    if isnan(meter.giou):
        logger.warning(
            "--overfit_one_batch: the batch holds no mask, so there is no mask IoU; watch ce in log.jsonl fall, or "
            "choose another --seed or --dataset"
        )
    elif meter.giou > LEARNED:
        logger.info(
            "--overfit_one_batch: mask IoU %.3f on %d masks after %d updates: this set-up learns",
            meter.giou, meter.num_pairs, updates,
        )  # fmt: skip
    else:
        logger.warning("%s", not_learned(meter, updates=updates, preview=preview))


def not_learned(meter: IoUMeter, *, updates: int, preview: str) -> Checklist:
    """What to look at when the IoU stayed low."""
    return Checklist(
        f"--overfit_one_batch: mask IoU {meter.giou:.3f} on {meter.num_pairs} masks after {updates} updates; a set-up "
        f"that learns passes {LEARNED}",
        "too few updates if it still rises from report to report, else a rate that does not fit, or data whose masks "
        "do not belong to their photos",
        (
            "whether it still rises: then give more --epochs or --steps_per_epoch",
            "--lr (and --muon_lr): 10 times higher and lower; --optimizer muon needs far fewer updates",
            "--train_mask_decoder, --bce_loss_weight and --dice_loss_weight: masks need all of them",
            "the masks on their photos, by the command below",
        ),
        preview,
    )
