"""The sources that a run reads, opened before any weight is."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from model.errors import InputError
from utils.cli.config import RunConfig
from utils.data.downloads import require_data
from utils.data.names import split_names
from utils.data.options import DataOptions
from utils.data.registry import build_train_sources, build_val_source
from utils.data.sources import Source

logger = logging.getLogger(__name__)

# A LLaVA base has never seen the tokens that stand for masks. From fewer samples than about this many, even the toy
# base learns them by heart at best (docs/custom_data.md).
ENOUGH_FOR_A_BASE = 2000


def open_train_sources(run: RunConfig) -> tuple[list[Source], list[float]]:
    """What the run trains on, and how often each source is drawn; nothing with ``--eval_only``.

    Returns:
        sources and their relative weights.
    Raises:
        InputError: if a set is unknown, or its files are missing or damaged.
    """
    if run.eval_only:
        return [], []
    options = DataOptions.of(run)
    asked_for = not (run.no_eval or run.overfit_one_batch) and _names_validation_sets(run)
    require_data(options, split_names(run.val_dataset) if asked_for else [])
    return build_train_sources(options)


def open_val_sources(run: RunConfig) -> list[Source]:
    """The sets of ``--val_dataset``; a default set that is not there is no reason to stop.

    Raises:
        InputError: if a set that the flags ask for is unknown, or its files are missing or damaged.
    """
    if (run.no_eval and not run.eval_only) or run.overfit_one_batch:
        return []
    names = split_names(run.val_dataset)
    if run.eval_only and not names:
        raise InputError("--val_dataset names no set, but --eval_only needs one")
    sources = []
    for name in names:
        try:
            sources.append(build_val_source(run.dataset_dir, name))
        except InputError as err:
            if run.eval_only or _names_validation_sets(run):
                raise
            logger.info("no validation during training: %s", err)
    return sources


def warn_of_little_data(run: RunConfig, sources: Sequence[Source], *, images_per_update: int) -> None:
    """Say what to expect of a run that starts from a LLaVA base and trains on few samples."""
    different, drawn = sum(len(source) for source in sources), run.total_updates * images_per_update
    if not run.init_from and 0 < min(different, drawn) < ENOUGH_FOR_A_BASE:
        logger.warning(
            "this run starts from a LLaVA base, which cannot draw masks yet, and draws %d samples from %d: with fewer "
            "than %d of either, expect few masks or none in its answers. Start from a trained model with --init_from",
            drawn,
            different,
            ENOUGH_FOR_A_BASE,
        )


def mask_share(sources: Sequence[Source], rates: Sequence[float], *, by_rate: bool) -> float:
    """The share of the samples that come from records with masks: 1.0 but for sources that say otherwise.

    Args:
        rates: how often each source is drawn.
        by_rate: samples are drawn by these rates; else every record is a sample.
    Returns:
        0 without sources.
    """
    weights = list(rates) if by_rate else [len(source) for source in sources]
    shares = [getattr(source, "mask_share", 1.0) for source in sources]
    return sum(w * s for w, s in zip(weights, shares, strict=True)) / (sum(weights) or 1)


def _names_validation_sets(run: RunConfig) -> bool:
    return run.val_dataset != RunConfig.val_dataset
