"""The training run: setup -> train -> close. One update is ``--grad_accumulation_steps`` forward passes."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from signal import Signals
from typing import cast

import torch

from model.attention import check_attention
from model.configuration import PRECISIONS
from model.losses import LossWeights, pixellm_loss
from model.structures import Batch, LossTerms
from utils import dist
from utils.cli.config import RunConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.mixture import Mixture, SkipTally, build_loader, read_batches
from utils.data.sources import Source
from utils.evaluation.teacher_forced import validate_teacher_forced

from .checkpoints import check_free_space, latest_step, load_checkpoint, save_checkpoint, step_folder
from .deepspeed_config import deepspeed_settings, shards_parameters
from .engine import Engine, build_engine, init_distributed
from .gradients import GradientGuard
from .journal import Journal, UpdateReport
from .memory import check_memory
from .peers import PeerWatch
from .run_data import open_train_sources, open_val_sources, warn_of_little_data
from .run_description import RunDescription, log_changes
from .run_directory import RunDirectory
from .run_lock import RunLock
from .start import TrainingModel, build_for_training
from .stop import Stopped, StopSignals, exit_code, launchers

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
        update: updates done.
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
    gradients: GradientGuard
    update: int

    @classmethod
    def setup(cls, run: RunConfig, peers: PeerWatch) -> Trainer:
        """Own the run directory, read data and weights, join the process group, and restore the checkpoint if any.

        Args:
            peers: begins to watch the other processes.
        Raises:
            InputError: if flags, data, weights or checkpoint cannot be used; before the first update.
        """
        launchers()
        check_attention(run.attn_implementation, dtype=PRECISIONS[run.precision])
        directory = RunDirectory.of(run)
        with ExitStack() as on_error:
            lock = RunLock.take(directory.path) if dist.is_main() else None
            if lock:
                on_error.callback(lock.release)
                directory.check_start(run)
            sources, rates = open_train_sources(run)
            val_sources = open_val_sources(run)
            device = init_distributed()
            peers.start(lambda: _whereabouts(directory))
            trainer = cls._build(run, device, directory, lock, sources, rates, val_sources)
            on_error.pop_all()
        return trainer

    @classmethod
    def _build(
        cls,
        run: RunConfig,
        device: torch.device,
        directory: RunDirectory,
        lock: RunLock | None,
        sources: list[Source],
        rates: list[float],
        val_sources: list[Source],
    ) -> Trainer:
        # A model that ZeRO-3 divides need not fit on one device.
        settings = deepspeed_settings(run)
        training = build_for_training(run, device=None if shards_parameters(settings) else device)
        with dist.stop_together():
            if sources:
                check_memory(training.wrapped, settings, device)
            if lock and sources:
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
        gradients = GradientGuard(training.wrapped, scales_loss=run.precision == "fp16", max_skips=run.skip_nonfinite)
        engine = build_engine(run, training, settings)
        update = _resume(run, directory, engine)
        if lock and not directory.has_checkpoint:  # of one that is there, this start may not change the meaning
            _describe(directory.description, run, training)
            logger.info("run directory %s", directory.path)
        _log_start(run, device, sources)
        warn_of_little_data(run, sources, images_per_update=_images_per_update(run))
        total = run.total_updates if mixture else update
        journal = Journal(directory, first_update=update, total_updates=total, print_freq=run.print_freq)
        skips = SkipTally(run.max_bad_share)
        return cls(
            run, directory, lock, training, device, engine, encoder, collator, mixture, val_sources, skips, journal,
            gradients, update,
        )  # fmt: skip

    def train(self) -> int:
        """Go on from the last checkpoint to the last update; with ``--eval_only``, validate.

        Returns:
            0, or the exit code of a run that SIGTERM or Ctrl-C has stopped. Its last update is saved.
        Raises:
            InputError: if a sample of a validation set or too many of the training data cannot be used, or if the loss
                or a gradient is not finite. What was saved before remains.
        """
        with StopSignals(lambda: _whereabouts(self.directory)) as stop:
            try:
                number = self._train(stop)
            except Stopped:
                number = stop.received
        if number:
            logger.info("stopped by %s after update %d; the same command goes on", Signals(number).name, self.update)
            return exit_code(number)
        return 0

    def _train(self, stop: StopSignals) -> int:
        """Returns the signal that all processes stop for; 0 at the end of the run."""
        run = self.run
        if self.mixture is None:
            with stop.at_once():
                self.validate()
            return 0
        if self.update >= run.total_updates:
            logger.info("%s is complete (%d updates); nothing to train", self.directory.path, self.update)
            return 0
        with closing(self._batches(self.mixture)) as batches:  # ends the loader's workers
            while self.update < run.total_updates:
                started, rate = time.time(), self.engine.get_lr()[0]
                terms, num_masks, number = self._one_update(batches, stop)
                self.update += 1
                self.journal.log_update(UpdateReport(self.update, rate, time.time() - started, num_masks, terms))
                ends_epoch = self.update % run.steps_per_epoch == 0
                if ends_epoch:
                    self.journal.log_skips(self.update, self.skips)
                if ends_epoch or number:
                    with stop.saving():
                        self.save()  # before validation, because its data may hold a sample that stops the run
                if number:
                    return number
                if ends_epoch:
                    with stop.at_once():
                        self.validate()
        return 0

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
        """Teacher-forced IoU on every validation set.

        Raises:
            InputError: from any sample that cannot be used.
        """
        for source in self.val_sources:
            meter = validate_teacher_forced(
                self.engine, source, self.encoder, self.collator,
                batch_size=self.run.val_batch_size, device=self.device, dtype=PRECISIONS[self.run.precision],
            )  # fmt: skip
            self.journal.log_validation(self.update, source.name, meter)

    def _batches(self, mixture: Mixture) -> Generator[Batch]:
        images_per_update = _images_per_update(self.run)
        loader = build_loader(
            mixture,
            self.collator,
            start=self.update * images_per_update,
            count=(self.run.total_updates - self.update) * images_per_update,
            rank=dist.rank(),
            world_size=dist.world_size(),
            batch_size=self.run.batch_size,
            num_workers=self.run.workers,
            pin_memory=self.device.type == "cuda",
        )
        return read_batches(loader, self.skips)

    def _one_update(self, batches: Iterator[Batch], stop: StopSignals) -> tuple[dict[str, float], int, int]:
        """Forward and backward ``grad_accumulation_steps`` times.

        Returns:
            mean loss parts and the number of masks, of all processes; the signal that any of them has received.
        """
        sums = torch.zeros(len(_PARTS) + 1, device=self.device)
        self.engine.train()
        number = 0
        for left in reversed(range(self.run.grad_accumulation_steps)):
            with dist.stop_together():
                batch = next(batches).to(self.device, PRECISIONS[self.run.precision])
            terms = self._losses(batch)
            self.engine.backward(self.gradients.watch(terms.total, terms, batch))
            if left:
                self.engine.step()  # counts
            else:
                number = self.gradients.step(self.engine, update=self.update + 1, agree=stop.received)
            parts = [getattr(terms, part).detach().float() for part in _PARTS]
            sums += torch.stack([*parts, sums.new_tensor(terms.num_masks)])
        sums = dist.all_reduce_sum(sums).cpu()
        passes = self.run.grad_accumulation_steps * dist.world_size()
        means = {part: float(value) / passes for part, value in zip(_PARTS, sums, strict=False)}
        return means, int(sums[-1]), number

    def _losses(self, batch: Batch) -> LossTerms:
        run, output = self.run, self.engine(**batch.inputs())
        weights = LossWeights(run.ce_loss_weight, run.bce_loss_weight, run.dice_loss_weight, run.refine_alpha)
        return pixellm_loss(
            output.loss, output.photo_logits, batch.masks, output.query_index, weights, ignore=batch.ignore
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


def _whereabouts(directory: RunDirectory) -> str:
    """Where a run goes on that ends now."""
    step = latest_step(directory.checkpoints)
    return f"The same command goes on from {step}" if step else "Nothing was saved yet; the same command starts anew"
