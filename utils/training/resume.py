"""What a start has to know of the base and of the checkpoint that it goes on with, and going on with it."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import nn

from model.configuration import PRECISIONS
from model.errors import InputError
from model.hub import portable_path
from utils import dist
from utils.cli.config import RunConfig

from .base_weights import check_base, fingerprint, read_start
from .checkpoints import Contents, load_checkpoint
from .engine import Engine
from .run_description import RunDescription, log_changes
from .shards import FROZEN
from .start import TrainingModel
from .stored import Progress, StoredState
from .update import images_per_update

logger = logging.getLogger(__name__)


def find_contents(run: RunConfig, training: TrainingModel, step: Path | None, stored: StoredState | None) -> Contents:
    """What the checkpoints of this run hold, once it is known which weights are the base's.

    Raises:
        InputError: if the base is not the one that the checkpoint relies on.
    """
    start = read_start(run, training.config, training.base_folder)
    base = fingerprint(training.wrapped, start, dtype=PRECISIONS[run.precision])
    if step and stored:
        named = f"--init_from {run.init_from}" if run.init_from else f"--version {run.version} with {run.vision_tower}"
        check_base(base, stored.weights["base"], step=step, base=named)
        base = _still_of_base(base, training.wrapped, stored)
    return Contents.of(
        training.wrapped,
        {} if run.save_frozen else base,
        base_place=portable_path(run.init_from or run.version),
        precision=run.precision,
    )


def _still_of_base(base: dict[str, str], network: nn.Module, stored: StoredState) -> dict[str, str]:
    """Those weights of the base that the network will still have once the checkpoint is restored.

    A checkpoint that holds untrained weights itself may have been trained from another base than is there now, or have
    rounded them to the precision that it was trained in.
    """
    own, frozen = network.state_dict(), stored.weights["frozen"]
    return {
        name: digest
        for name, digest in base.items()
        if name not in frozen or torch.equal(stored.read(FROZEN, name).to(own[name].dtype), own[name].cpu())
    }


def resume(run: RunConfig, engine: Engine, step: Path, stored: StoredState) -> Progress:
    """Restore a checkpoint; returns where it was written.

    Raises:
        InputError: if it does not fit the run.
    """
    if description := RunDescription.of_weight(step):
        log_changes(description.read_flags(), run)
    with dist.stop_together():
        load_checkpoint(engine, step, stored, seed=run.seed)
    progress = stored.progress
    if progress.images_per_update != images_per_update(run):
        if run.epoch_mode == "all" and not run.eval_only:
            raise InputError(
                f"{step} made updates of {progress.images_per_update} images, by which --epoch_mode all counts epochs, "
                f"but this start would make them of {images_per_update(run)}; change --batch_size or "
                "--grad_accumulation_steps so that their product with the number of processes stays"
            )
        logger.warning(
            "resuming with %d images per update, was %d: the data stream goes on, but not with the same batches",
            images_per_update(run),
            progress.images_per_update,
        )
    logger.info("resumed %s after update %d", step, progress.update)
    return progress
