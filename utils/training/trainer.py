"""The training run: setup -> train -> close. One update is ``--grad_accumulation_steps`` forward passes."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import cast

import torch

from model.attention import check_attention
from model.configuration import PRECISIONS
from model.errors import InputError
from model.losses import LossWeights, pixellm_loss
from model.structures import Batch, LossTerms
from utils import dist
from utils.cli.config import RunConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.mixture import Mixture, SkipTally, build_loader, read_batches
from utils.data.sources import Source
from utils.evaluation.blanks import Blanks
from utils.evaluation.teacher_forced import validate_teacher_forced

from .checkpoints import check_free_space, load_checkpoint, save_checkpoint, step_folder
from .deepspeed_config import deepspeed_settings, shards_parameters
from .engine import Engine, build_engine, init_distributed
from .guards import Guards, Sightings
from .journal import Journal, UpdateReport
from .overfit import OneBatch
from .run_data import mask_share, open_train_sources, open_val_sources, warn_of_little_data
from .run_description import RunDescription, log_changes
from .run_directory import RunDirectory
from .run_lock import RunLock
from .start import TrainingModel, build_for_training
from .tower_guard import warn_of_tower

logger = logging.getLogger(__name__)

_PARTS = ("total", "ce", "bce", "dice", "refine")


@dataclass
class Trainer:
    """A run that is ready to go on; made by ``setup``, released by ``close``.

    Attributes:
        run: the flags, with the number of updates of an epoch settled.
        lock: of the directory; only the main process holds it.
        training: what each checkpoint is described by.
        mixture: the stream of training samples; None with ``--eval_only``.
        val_sources: what is validated after each epoch.
        sightings: what the guards have to know of the forward passes of an update.
        update: updates done.
        one_batch: with ``--overfit_one_batch``, once training has begun.
    """

    run: RunConfig
    directory: RunDirectory
    lock: RunLock | None
    training: TrainingModel
    device: torch.device
    engine: Engine
    encoder: Encoder
    collator: Collator
    mixture: Mixture | None
    val_sources: list[Source]
    skips: SkipTally
    journal: Journal
    guards: Guards
    sightings: Sightings
    update: int
    one_batch: OneBatch | None = None

    @classmethod
    def setup(cls, run: RunConfig) -> Trainer:
        """Own the run directory, read data and weights, join the process group, and restore the checkpoint if any.

        Raises:
            InputError: if flags, data, weights or checkpoint cannot be used; before the first update.
        """
        check_attention(run.attn_implementation, dtype=PRECISIONS[run.precision])
        directory = RunDirectory.of(run)
        with ExitStack() as on_error:
            lock = RunLock.take(directory.path) if dist.is_main() else None
            if lock:
                on_error.callback(lock.release)
                directory.check_start(run)
            sources, rates = open_train_sources(run)
            val_sources = open_val_sources(run)
            trainer = cls._build(run, directory, lock, sources, rates, val_sources)
            on_error.pop_all()
        return trainer

    @classmethod
    def _build(
        cls,
        run: RunConfig,
        directory: RunDirectory,
        lock: RunLock | None,
        sources: list[Source],
        rates: list[float],
        val_sources: list[Source],
    ) -> Trainer:
        device = init_distributed()
        # A model that ZeRO-3 divides need not fit on one device.
        settings = deepspeed_settings(run)
        training = build_for_training(run, device=None if shards_parameters(settings) else device)
        with dist.stop_together():
            if lock and sources and not run.overfit_one_batch:
                goes_on = directory.has_checkpoint and not run.overwrite_run
                check_free_space(training.wrapped, directory.path, num=1 if goes_on or run.epochs == 1 else 2)
            if lock and run.overwrite_run:  # not before data and weights have been read
                directory.set_aside(lock)
        run = dataclasses.replace(run, overwrite_run=False)  # done, and not to be repeated with the recorded flags
        encoder, collator = _readers(training)
        mixture = None
        if sources:
            mixture = Mixture(sources, rates, encoder, seed=run.seed, once_per_epoch=run.epoch_mode == "all")
            run = _with_length_of_epoch(run, mixture)
        engine = build_engine(run, training, settings)
        update = _resume(run, directory, engine)
        if lock and not directory.has_checkpoint:  # of one that is there, this start may not change the meaning
            _describe(directory.description, run, training)
            logger.info("run directory %s", directory.path)
        _log_start(run, device, sources)
        warn_of_tower(run, training)
        if not run.overfit_one_batch:
            warn_of_little_data(run, sources, images_per_update=_images_per_update(run))
        total = run.total_updates if mixture else update
        journal = Journal(directory, first_update=update, total_updates=total, print_freq=run.print_freq)
        skips = SkipTally(run.max_bad_share)
        share = mask_share(sources, rates, by_rate=run.epoch_mode == "rates")
        guards = Guards(mask_share=share, total_updates=total, run_dir=directory.path)
        return cls(
            run, directory, lock, training, device, engine, encoder, collator, mixture, val_sources, skips, journal,
            guards, Sightings(device), update,
        )  # fmt: skip

    def train(self) -> None:
        """Go on from the last checkpoint to the last update; with ``--eval_only``, validate.

        Raises:
            InputError: if a sample of a validation set or too many of the training data cannot be used, or if the loss
                is not finite. What was saved before remains.
        """
        run = self.run
        if self.mixture is None:
            self.validate()
            return
        if self.update >= run.total_updates:
            logger.info("%s is complete (%d updates); nothing to train", self.directory.path, self.update)
            return
        batches = self._batches(self.mixture)
        while self.update < run.total_updates:
            started, rate = time.time(), self.engine.get_lr()[0]
            terms, num_masks, num_tokens, blanks = self._one_update(batches)
            self.update += 1
            seconds, num_samples = time.time() - started, _images_per_update(run)
            report = UpdateReport(self.update, rate, seconds, num_masks, terms, num_samples, num_tokens, blanks)
            self.journal.log_update(report)
            self.guards.see_update(report)
            if self.update % run.steps_per_epoch == 0:
                self.journal.log_skips(self.update, self.skips)
                if not run.overfit_one_batch:
                    self.save()  # first, because a validation set may hold a sample that stops the run
                self.validate()

    def close(self) -> None:
        """Release files, the directory and the process group."""
        self.journal.close()
        if self.lock:
            self.lock.release()
        dist.leave()

    def save(self) -> None:
        """Write a checkpoint in the place of the last one.

        Raises:
            InputError: if another process has taken the directory over; nothing is written then.
        """
        folder = self.directory.checkpoints
        with dist.stop_together():
            if self.lock:
                self.lock.check()
                _describe(RunDescription(step_folder(folder, self.update)), self.run, self.training)
        state = {"update": self.update, "images_per_update": _images_per_update(self.run)}
        save_checkpoint(self.engine, folder, update=self.update, state=state)
        if self.lock:
            _describe(self.directory.description, self.run, self.training)
        logger.info("saved %s after update %d", folder, self.update)

    def validate(self) -> None:
        """Teacher-forced IoU on every validation set, or on the one batch.

        Raises:
            InputError: from any sample that cannot be used.
        """
        if self.one_batch:
            self.one_batch.score(self.engine, self.journal, update=self.update)
        for source in self.val_sources:
            found = validate_teacher_forced(
                self.engine, source, self.encoder, self.collator,
                batch_size=self.run.val_batch_size, device=self.device, dtype=PRECISIONS[self.run.precision],
            )  # fmt: skip
            self.journal.log_validation(self.update, source.name, found.meter)
            self.guards.see_validation(self.update, source.name, found.blanks)

    def _batches(self, mixture: Mixture) -> Iterator[Batch]:
        images_per_update = _images_per_update(self.run)
        num_updates = 1 if self.run.overfit_one_batch else self.run.total_updates - self.update
        loader = build_loader(
            mixture,
            self.collator,
            start=self.update * images_per_update,
            count=num_updates * images_per_update,
            rank=dist.rank(),
            world_size=dist.world_size(),
            batch_size=self.run.batch_size,
            num_workers=self.run.workers,
            pin_memory=self.device.type == "cuda",
        )
        batches = read_batches(loader, self.skips)
        if self.run.overfit_one_batch:
            with dist.stop_together():
                self.one_batch = OneBatch(self.run, self.directory.path, batches, device=self.device)
            return self.one_batch.forever()
        return batches

    def _one_update(self, batches: Iterator[Batch]) -> tuple[dict[str, float], int, int, Blanks]:
        """Forward and backward ``grad_accumulation_steps`` times.

        Returns:
            mean loss parts, the numbers of masks and supervised tokens, and blank predictions, of all processes.
        """
        sums = torch.zeros(len(_PARTS) + 1, device=self.device)
        self.engine.train()
        for _ in range(self.run.grad_accumulation_steps):
            with dist.stop_together():
                batch = next(batches).to(self.device, PRECISIONS[self.run.precision])
            terms = self._losses(batch)
            with dist.stop_together():
                self._check_finite(terms, batch)
            self.engine.backward(terms.total)
            self.engine.step()
            parts = [getattr(terms, part).detach().float() for part in _PARTS]
            sums += torch.stack([*parts, sums.new_tensor(terms.num_masks)])
        sums = dist.all_reduce_sum(torch.cat([sums, self.sightings.take()])).cpu()
        passes = self.run.grad_accumulation_steps * dist.world_size()
        means = {part: float(value) / passes for part, value in zip(_PARTS, sums, strict=False)}
        num_masks, num_tokens, *blanks = map(int, sums[len(_PARTS) :].tolist())
        return means, num_masks, num_tokens, Blanks(*blanks)

    def _losses(self, batch: Batch) -> LossTerms:
        run, output = self.run, self.engine(**batch.inputs())
        weights = LossWeights(run.ce_loss_weight, run.bce_loss_weight, run.dice_loss_weight, run.refine_alpha)
        terms = pixellm_loss(
            output.loss, output.photo_logits, batch.masks, output.query_index, weights, ignore=batch.ignore
        )
        self.sightings.add(batch, output)
        return terms

    def _check_finite(self, terms: LossTerms, batch: Batch) -> None:
        if not torch.isfinite(terms.total):
            raise InputError(
                f"the loss is {terms.total.item()} in update {self.update + 1}, at samples "
                f"{', '.join(batch.sample_ids)} (ce {terms.ce.item():.4g}, bce {terms.bce.item():.4g}, dice "
                f"{terms.dice.item():.4g}); nothing was updated. Lower --lr, or use --precision bf16 or fp32"
            )


def _images_per_update(run: RunConfig) -> int:
    """Of all processes together."""
    return run.batch_size * run.grad_accumulation_steps * dist.world_size()


def _readers(training: TrainingModel) -> tuple[Encoder, Collator]:
    """What turns samples into tensors for this model."""
    encoder = Encoder(training.tokenizer, training.network.codebook, training.config)
    # transformers declares every type that the id of any tokenizer's token may have.
    return encoder, Collator(encoder.codebook, pad_token_id=cast(int, training.tokenizer.pad_token_id))


def _with_length_of_epoch(run: RunConfig, mixture: Mixture) -> RunConfig:
    """With ``--epoch_mode=all``, an epoch has as many updates as it takes to see every sample."""
    if run.epoch_mode != "all":
        return run
    return dataclasses.replace(run, steps_per_epoch=-(-mixture.num_items // _images_per_update(run)))


def _describe(description: RunDescription, run: RunConfig, training: TrainingModel) -> None:
    description.write(run, training.config, training.tokenizer, source=training.base_folder)


def _resume(run: RunConfig, directory: RunDirectory, engine: Engine) -> int:
    """Restore the checkpoint that the flags or the directory name; returns the updates done, 0 without one."""
    folder = dist.gather_objects(directory.checkpoint_to_resume(run))[0]  # the main process decides for all
    if folder is None:
        return 0
    if description := RunDescription.of_weight(folder):
        log_changes(description.read_flags(), run)
    state = load_checkpoint(engine, folder)
    if state["images_per_update"] != _images_per_update(run):
        logger.warning(
            "resuming with %d images per update, was %d: the data stream goes on, but not with the same batches",
            _images_per_update(run),
            state["images_per_update"],
        )
    logger.info("resumed %s after update %d", folder, state["update"])
    return state["update"]


def _log_start(run: RunConfig, device: torch.device, sources: list[Source]) -> None:
    logger.info(
        "%d process(es) on %s, %s, %d images per update, %d updates, data: %s",
        dist.world_size(),
        device.type,
        run.precision,
        _images_per_update(run),
        run.total_updates,
        ", ".join(f"{source.name} ({len(source):,})" for source in sources) or "validation only",
    )
