"""The training run: setup -> train -> close."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from model.attention import check_attention, check_shared_prefix
from model.configuration import PRECISIONS
from model.precision import settle_precision
from model.structures import Batch
from utils import dist
from utils.cli.config import RunConfig
from utils.data.collate import Collator
from utils.data.encode import Encoder
from utils.data.mixture import Mixture, SkipTally, build_loader, read_batches
from utils.data.shared_memory import read_once
from utils.data.sources import Source

from .activations import settle_activations
from .boards import check_board
from .checkpoints import Checkpoints, check_free_space, num_to_come, open_step
from .compilation import check_compile, compile_blocks
from .deepspeed_config import deepspeed_settings, shards_parameters
from .engine import Engine, build_engine, check_precision, init_distributed
from .feature_cache import FeatureCache, check_cache, open_cache
from .gradients import GradientGuard
from .guards import Guards
from .journal import Journal
from .machines import check_shared
from .memory import check_memory
from .out_of_memory import Phase, memory_told
from .overfit import OneBatch
from .peers import PeerWatch
from .report import UpdateRecords
from .resume import find_contents, resume
from .run_data import mask_share, open_train_sources, open_val_sources, warn_of_little_data
from .run_description import RunDescription
from .run_directory import RunDirectory
from .run_lock import RunLock
from .shards import read_loss_scale, steps_of
from .start import TrainingModel, build_for_training
from .steps import latest_step, remove_unfinished, step_names
from .stop import Stopped, StopSignals, tell_stopped
from .stored import Progress
from .tower_guard import warn_of_tower
from .update import Updates, check_images_per_update, images_per_update
from .validation import Validation

logger = logging.getLogger(__name__)


@dataclass
class Trainer:
    """A run that is ready to go on; made by ``setup``, released by ``close``.

    Attributes:
        run: the flags, with the number of updates of an epoch settled.
        lock: of the directory; only the main process holds it.
        training: what each checkpoint is described by.
        mixture: the stream of training samples; None with ``--eval_only``.
        validation: what is validated after each epoch.
        checkpoints: where the run is saved, and what is saved of it.
        updates: makes one update after the other.
        update, samples, seconds: updates done, images drawn for them by all processes, time they took.
        one_batch: with ``--overfit_one_batch``, once training has begun.
    """

    run: RunConfig
    directory: RunDirectory
    lock: RunLock | None
    training: TrainingModel
    device: torch.device
    engine: Engine
    collator: Collator
    mixture: Mixture | None
    validation: Validation
    skips: SkipTally
    journal: Journal
    checkpoints: Checkpoints
    guards: Guards
    updates: Updates
    update: int
    samples: int
    seconds: float
    one_batch: OneBatch | None = None

    @classmethod
    def setup(cls, run: RunConfig, peers: PeerWatch) -> Trainer:
        """Own the run directory, read data and weights, join the process group, and restore the checkpoint if any.

        Args:
            peers: begins to watch the other processes.
        Raises:
            InputError: if flags, data, weights or checkpoint cannot be used; before the first update.
        """
        check_board(run.report_to)
        check_attention(run.attn_implementation, dtype=PRECISIONS.get(run.precision))  # on a GPU, auto is 16 bits
        check_compile(run)
        check_images_per_update(run)
        if run.shared_prefix:
            check_shared_prefix(run.attn_implementation)
        directory = RunDirectory.of(run)
        with ExitStack() as on_error:
            lock, step = RunLock.take(directory.path) if dist.is_main() else None, None
            if lock:
                on_error.callback(lock.release)
                step = directory.check_start(run)
            (sources, rates), val_sources = read_once(lambda: (open_train_sources(run), open_val_sources(run)))
            device = init_distributed()
            peers.start(lambda: _whereabouts(directory))
            check_shared(directory.path)
            bits = 4 if run.load_in_4bit else 16
            precision = settle_precision(run.precision, device, bits=bits, agree=dist.gather_objects)
            run = dataclasses.replace(run, precision=precision)  # the run is recorded with it
            check_precision(run, device)
            with memory_told("start", run, device, whereabouts=lambda: _whereabouts(directory)):
                trainer = cls._build(run, device, directory, lock, step, sources, rates, val_sources)
            on_error.pop_all()
        return trainer

    @classmethod
    def _build(
        cls,
        run: RunConfig,
        device: torch.device,
        directory: RunDirectory,
        lock: RunLock | None,
        step: Path | None,
        sources: list[Source],
        rates: list[float],
        val_sources: list[Source],
    ) -> Trainer:
        # A model that ZeRO-3 divides need not fit on one device.
        settings = deepspeed_settings(run)
        training = build_for_training(run, device=None if shards_parameters(settings) else device)
        check_cache(run, training.config, settings)
        step = dist.gather_objects(step)[0]  # the main process decides for all
        with dist.stop_together():
            stored = open_step(step) if step else None
        contents, free = None, 0
        with dist.stop_together():
            if sources:
                free = check_memory(training.wrapped, settings, device)
            if lock:
                contents = find_contents(run, training, step, stored)
            if lock and sources and contents and not run.overfit_one_batch:
                num_there = 0 if run.overwrite_run else len(step_names(directory.checkpoints))
                num = num_to_come(num_there, keep=run.keep_checkpoints, epochs=run.epochs, validates=bool(val_sources))
                check_free_space(training.wrapped, directory.path, contents, num=num)
                remove_unfinished(directory.checkpoints)
            if lock and run.overwrite_run:  # not before data and weights have been read
                directory.set_aside(lock)
        if sources:
            settle_activations(run, training, settings, free=free)
        if run.compile:
            compile_blocks(training.network)
        contents = dist.gather_objects(contents)[0]
        assert contents is not None  # the main process has found out
        run = dataclasses.replace(run, overwrite_run=False)  # done, and not to be repeated with the recorded flags
        encoder, collator = _readers(run, training)
        mixture, cache = None, open_cache(run, training, device) if sources else None
        if sources:
            mixture, run = _make_mixture(run, sources, rates, encoder, cache)
        gradients = GradientGuard(training.wrapped, scales_loss=run.precision == "fp16", max_skips=run.skip_nonfinite)
        engine = build_engine(run, training, settings)
        checkpoints = Checkpoints(directory.checkpoints, contents, keep=run.keep_checkpoints)
        update, samples, seconds = 0, 0, 0.0
        if step and stored:
            progress = resume(run, engine, step, stored)
            checkpoints.read_scores(progress.scores)
            update, samples, seconds = progress.update, progress.samples, progress.seconds
        if lock and not directory.has_checkpoint:  # of one that is there, this start may not change the meaning
            directory.description.write(run, training.config, training.tokenizer, source=training.base_folder)
            logger.info("run directory %s", directory.path)
        _log_start(run, device, sources)
        warn_of_tower(run, training)
        if not run.overfit_one_batch:
            warn_of_little_data(run, sources, images_per_update=images_per_update(run))
        total = run.total_updates if mixture else update
        with dist.stop_together():
            records = UpdateRecords.of(training.config, device)
            journal = Journal(directory, run, records, first_update=update, total_updates=total)
        skips = SkipTally(run.max_bad_share)
        share = mask_share(sources, rates, by_rate=run.epoch_mode == "rates")
        names, covered = [source.name for source in sources], training.config.covered_size
        updates = Updates(run, engine, gradients, device=device, covered_size=covered, sources=names, cache=cache)
        guards = Guards(mask_share=share, total_updates=total, run_dir=directory.path)
        validation = Validation(run, engine, training, val_sources, encoder, collator, device, journal, guards)
        return cls(
            run, directory, lock, training, device, engine, collator, mixture, validation, skips, journal, checkpoints,
            guards, updates, update, samples, seconds,
        )  # fmt: skip

    def train(self, stop: StopSignals) -> int:
        """Go on from the last checkpoint to the last update; with ``--eval_only``, validate.

        Returns:
            0, or the exit code of a run that SIGTERM or Ctrl-C has stopped. Its last update is saved.
        Raises:
            InputError: if a sample of a validation set or too many of the training data cannot be used, or if the loss
                or a gradient is not finite. What was saved before remains.
        """
        try:
            stop.begin(lambda: _whereabouts(self.directory))
            number = self._train(stop)
        except Stopped as stopped:
            number = stopped.number
        if not number:
            return 0
        return tell_stopped(number, f"after update {self.update}; the same command goes on")

    def _train(self, stop: StopSignals) -> int:
        """Returns the signal that all processes stop for; 0 at the end of the run."""
        run = self.run
        if self.mixture is None or self._lacks_score():
            self.validate(stop)
        if self.mixture is None:
            return 0
        if self.update >= run.total_updates:
            logger.info("%s is complete (%d updates); nothing to train", self.directory.path, self.update)
            return 0
        with closing(self._batches(self.mixture)) as batches:  # ends the loader's workers
            while self.update < run.total_updates:
                with self._memory_told("update", self.update + 1):
                    report, number = self.updates.make(batches, self.update + 1, agree=lambda: stop.received)
                self.update = report.update
                self.samples += report.num_samples
                self.seconds += report.seconds
                self.journal.log_update(report, is_last=bool(number))
                self.guards.see_update(report)
                ends_epoch = self.update % run.steps_per_epoch == 0
                if ends_epoch:
                    self.journal.log_skips(self.update, self.skips)
                if (ends_epoch or number) and not run.overfit_one_batch:
                    with stop.saving():
                        self.save()  # before validation, because its data may hold a sample that stops the run
                if number:
                    return number
                if ends_epoch:
                    self.validate(stop)
        return 0

    def close(self) -> None:
        """Release files and the directory."""
        self.journal.close()
        if self.lock:
            self.lock.release()

    def save(self) -> None:
        """Write a checkpoint of this update.

        Raises:
            InputError: if another process has taken the directory over, the run has diverged, or the checkpoint cannot
                be written; what was saved before is whole.
        """
        with dist.stop_together():
            if self.lock:
                self.lock.check()
        if self.updates.has_diverged():
            self.checkpoints.refuse_diverged(self.update)
        progress = Progress(
            update=self.update,
            images_per_update=images_per_update(self.run),
            samples=self.samples,
            processes=dist.world_size(),
            optimizer_steps=steps_of(self.engine),
            schedule_steps=self.engine.lr_scheduler.last_epoch,
            loss_scale=read_loss_scale(self.engine),
            seconds=self.seconds,
            scores=self.checkpoints.scores,
        )
        self.checkpoints.save(self.engine, progress, describe=self._describe)
        with dist.stop_together():
            if self.lock:
                self._describe(self.directory.path)
                self.checkpoints.copy_record(self.update, self.directory.path)
        logger.info("saved %s after update %d", self.checkpoints.folder, self.update)

    def validate(self, stop: StopSignals) -> None:
        """Score every validation set, or the one batch; the best checkpoint is kept.

        Raises:
            Stopped: on all processes, if a signal came to any of them.
            InputError: from any sample that cannot be used, or if memory runs out.
        """
        with self._memory_told("validation", self.update):
            self._validate(stop)

    def _validate(self, stop: StopSignals) -> None:
        if self.one_batch:
            self.one_batch.score(self.engine, self.journal, update=self.update)
        scores = self.validation.score(self.update, before_pass=stop.check)
        with dist.stop_together():
            if self.lock and self.mixture and scores:
                self.checkpoints.add_score(self.update, sum(scores) / len(scores))

    def _memory_told(self, phase: Phase, update: int) -> AbstractContextManager[None]:
        return memory_told(
            phase, self.run, self.device, update=update, whereabouts=lambda: _whereabouts(self.directory)
        )

    def _lacks_score(self) -> bool:
        """Whether the run was stopped between saving an epoch and the end of its validation."""
        ended = self.update > 0 and self.update % self.run.steps_per_epoch == 0 and bool(self.validation.sources)
        return dist.gather_objects(ended and not self.checkpoints.has_score(self.update))[0]

    def _describe(self, folder: Path) -> None:
        training = self.training
        RunDescription(folder).write(self.run, training.config, training.tokenizer, source=training.base_folder)

    def _batches(self, mixture: Mixture) -> Generator[Batch]:
        num_updates = 1 if self.run.overfit_one_batch else self.run.total_updates - self.update
        loader = build_loader(
            mixture,
            self.collator,
            start=self.samples,
            count=num_updates * images_per_update(self.run),
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


def _readers(run: RunConfig, training: TrainingModel) -> tuple[Encoder, Collator]:
    """What turns samples into tensors for this model."""
    encoder = Encoder(training.tokenizer, training.network.codebook, training.config)
    # transformers declares every type that the id of any tokenizer's token may have.
    pad_token_id = cast(int, training.tokenizer.pad_token_id)
    return encoder, Collator(training.config, pad_token_id, shared_prefix=run.shared_prefix)


def _make_mixture(
    run: RunConfig, sources: list[Source], rates: list[float], encoder: Encoder, cache: FeatureCache | None
) -> tuple[Mixture, RunConfig]:
    """The stream of training samples, in which photos that the cache knows have no pixels; the length of an epoch."""
    encoder = Encoder(encoder.tokenizer, encoder.codebook, encoder.config, cache)
    mixture = Mixture(sources, rates, encoder, seed=run.seed, once_per_epoch=run.epoch_mode == "all")
    run = _with_length_of_epoch(run, mixture)
    if cache:
        cache.check_room(min(mixture.num_items, run.total_updates * images_per_update(run)))
    return mixture, run


def _with_length_of_epoch(run: RunConfig, mixture: Mixture) -> RunConfig:
    """With ``--epoch_mode=all``, an epoch has as many updates as it takes to see every sample."""
    if run.epoch_mode != "all":
        return run
    return dataclasses.replace(run, steps_per_epoch=-(-mixture.num_items // images_per_update(run)))


def _log_start(run: RunConfig, device: torch.device, sources: list[Source]) -> None:
    logger.info(
        "%d process(es) on %s, %s, %d images per update, %d updates, data: %s",
        dist.world_size(),
        device.type,
        run.precision,
        images_per_update(run),
        run.total_updates,
        ", ".join(f"{source.name} ({len(source):,})" for source in sources) or "validation only",
    )


def _whereabouts(directory: RunDirectory) -> str:
    """Where a run goes on that ends now."""
    step = latest_step(directory.checkpoints)
    return f"The same command goes on from {step}" if step else "Nothing was saved yet; the same command starts anew"
