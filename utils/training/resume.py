"""What a start has to know of the base and of the checkpoint that it goes on with, and going on with it."""

from __future__ import annotations

import logging
from pathlib import Path

from model.configuration import PRECISIONS
from model.errors import InputError
from model.hub import portable_path
from utils import dist
from utils.cli.config import RunConfig

from .base_weights import check_base, fingerprint, read_start, still_of_base
from .checkpoints import Contents, load_checkpoint
from .engine import Engine
from .run_description import RunDescription, log_changes
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
        base = still_of_base(base, training.wrapped, stored)
    return Contents.of(
        training.wrapped,
        {} if run.save_frozen else base,
        base_place=portable_path(run.init_from or run.version),
        precision=run.settled_precision,
    )


def resume(run: RunConfig, engine: Engine, step: Path, stored: StoredState) -> Progress:
    """Restore a checkpoint; returns where it was written.

    Raises:
        InputError: if it does not fit the run.
    """
    if description := RunDescription.of_weight(step):
        log_changes(description.read_flags(), run)
    progress = stored.progress
    if not run.eval_only:
        check_batch(run, progress, step=step)
    with dist.stop_together():
        load_checkpoint(engine, step, stored, seed=run.seed)
    logger.info("resumed %s after update %d", step, progress.update)
    return progress


def check_batch(run: RunConfig, progress: Progress, *, step: Path) -> None:
    """Say what another number of images per update means for the rest of a run.

    Raises:
        InputError: with ``--epoch_mode all``, where it decides how many updates a run has: of those that were done, it
            could not be said any more how much of the data they stand for.
    """
    now, before = images_per_update(run), progress.images_per_update
    if now == before:
        return
    if run.epoch_mode == "all":
        passes, rest = divmod(before, run.batch_size * dist.world_size())
        advice = (
            f"give --grad_accumulation_steps {passes}"
            if passes and not rest
            else f"choose --batch_size and --grad_accumulation_steps whose product times the processes is {before}"
        )
        raise InputError(
            f"--epoch_mode all: {step} was trained with {before} images per update, and these flags with "
            f"{dist.world_size()} process(es) make {now}; {advice}"
        )
    logger.warning(
        "resuming with %d images per update, was %d: the data stream goes on, but not with the same batches",
        now, before,
    )  # fmt: skip
