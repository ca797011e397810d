"""The training run: setup -> train -> close. One update is ``--grad_accumulation_steps`` forward passes."""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from model.configuration import PRECISIONS
from model.errors import InputError
from model.files import atomic_folder
from model.losses import LossWeights, pixellm_loss
from model.structures import Batch, LossTerms
from model.text.tokenizer import save_tokenizer
from utils import dist
from utils.cli.config import RUN_CONFIG_FILE, RunConfig
from utils.data.collate import Collator
from utils.data.downloads import require_data
from utils.data.encode import Encoder
from utils.data.mixture import Mixture, SkipTally, build_loader, describe_skips, read_batches
from utils.data.names import split_names
from utils.data.registry import DataOptions, build_train_sources, build_val_source
from utils.data.sources import Source
from utils.evaluation.teacher_forced import validate_teacher_forced

from .checkpoints import load_checkpoint, save_checkpoint
from .engine import build_engine, init_distributed
from .journal import JsonLines
from .start import TrainingModel, build_for_training

logger = logging.getLogger(__name__)

MODEL_FOLDER = "model_config"  # config.json and tokenizer of the run, inside the run directory
_PARTS = ("total", "ce", "bce", "dice", "refine")


class Trainer:
    """Everything a run needs, built in ``setup`` and released in ``close``.

    Args:
        run: the flags. Bad combinations fail here or in ``setup``, before the first update.
    """

    def __init__(self, run: RunConfig) -> None:
        self.run = run
        self.update = 0  # updates done
        self.best_giou = 0.0
        self.weights = LossWeights(run.ce_loss_weight, run.bce_loss_weight, run.dice_loss_weight, run.refine_alpha)
        self.skips = SkipTally(run.max_bad_share)
        self._json_log: JsonLines | None = None
        self._board: SummaryWriter | None = None

    def setup(self) -> None:
        """Read data and weights and join the process group."""
        run = self.run
        self._refuse_used_name()
        sources: list[Source] = []
        if not run.eval_only:
            options = DataOptions.of(run)
            # A validation set that nobody asked for may be absent; see _val_sources.
            asked_for = not run.no_eval and run.val_dataset != RunConfig.val_dataset
            require_data(options, split_names(run.val_dataset) if asked_for else [])
            sources, rates = build_train_sources(options)
        self.val_sources = [] if run.no_eval and not run.eval_only else self._val_sources()
        self.device = init_distributed()
        training = build_for_training(run)
        self.encoder = Encoder(training.tokenizer, training.network.codebook, training.config)
        self.collator = Collator(training.network.codebook, pad_token_id=training.tokenizer.pad_token_id)
        if sources:
            self.mixture = Mixture(sources, rates, self.encoder, seed=run.seed, once_per_epoch=run.epoch_mode == "all")
            if run.epoch_mode == "all":
                steps = -(-self.mixture.num_items // self.images_per_update)
                run = self.run = dataclasses.replace(run, steps_per_epoch=steps)
        self.engine = build_engine(run, training)
        self._resume()
        if dist.is_main():
            self._describe_run(training)
            self._json_log = JsonLines(run.run_dir / "log.jsonl")
            self._board = SummaryWriter(str(run.run_dir), purge_step=self.update)
        logger.info(
            "%d process(es) on %s, %s, %d images per update, %d updates, data: %s",
            dist.world_size(),
            self.device.type,
            run.precision,
            self.images_per_update,
            run.total_updates,
            ", ".join(f"{source.name} ({len(source):,})" for source in sources) or "validation only",
        )

    @property
    def images_per_update(self) -> int:
        return self.run.batch_size * self.run.grad_accumulation_steps * dist.world_size()

    def train(self) -> None:
        """Go on from the last checkpoint to the last update."""
        run = self.run
        if run.eval_only:
            self._validate()
            return
        if self.update >= run.total_updates:
            logger.info("%s is complete (%d updates); nothing to train", run.run_dir, self.update)
            return
        batches = self._batches()
        bar = tqdm(total=run.total_updates, initial=self.update, unit="update", disable=not self._has_terminal())
        started, first = time.time(), self.update
        while self.update < run.total_updates:
            step_started, rate = time.time(), self.engine.get_lr()[0]
            terms, num_masks = self._one_update(batches)
            self.update += 1
            seconds = time.time() - step_started
            remaining = (time.time() - started) / (self.update - first) * (run.total_updates - self.update)
            self._log_update(bar, terms, num_masks, rate=rate, seconds=seconds, remaining=remaining)
            if self.update % run.steps_per_epoch == 0:
                self._log_skips()
                self._validate()
                self._save()
        bar.close()

    def close(self) -> None:
        """Release files and the process group; safe to call at any time."""
        if self._json_log is not None:
            self._json_log.close()
        if self._board is not None:
            self._board.close()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def _val_sources(self) -> list[Source]:
        """The sets of --val_dataset; a default set that is not there is no reason to stop."""
        names = split_names(self.run.val_dataset)
        if self.run.eval_only and not names:
            raise InputError("--val_dataset names no set, but --eval_only needs one")
        sources = []
        for name in names:
            try:
                sources.append(build_val_source(self.run.dataset_dir, name))
            except InputError as err:
                if self.run.eval_only or self.run.val_dataset != RunConfig.val_dataset:
                    raise
                logger.info("no validation during training: %s", err)
        return sources

    def _refuse_used_name(self) -> None:
        """A new run keeps one checkpoint, its own: under a used name it would remove that of the earlier run."""
        run = self.run
        steps = sorted(path.name for path in run.checkpoint_dir.glob("global_step*"))
        if run.eval_only or not steps:
            return
        holds = f"{run.checkpoint_dir} holds {steps[-1]} of an earlier run"
        advice = "choose another --exp_name, or move the folder away"
        if run.resume and Path(run.resume).resolve() != run.checkpoint_dir.resolve():
            raise InputError(f"{holds}, but --resume goes on with {run.resume}; {advice}")
        if run.resume:
            return
        if not run.auto_resume:
            raise InputError(f"{holds}, which --no_auto_resume would replace; {advice}")
        if not (run.checkpoint_dir / "latest").is_file():
            raise InputError(
                f"{holds}, but no file named latest that says whether it is whole; write its name into "
                f"{run.checkpoint_dir / 'latest'} to go on with it, {advice}"
            )
        begun = RunConfig.load(run.run_dir).init_from if (run.run_dir / RUN_CONFIG_FILE).is_file() else run.init_from
        if run.init_from and run.init_from != begun:
            raise InputError(f"{holds}, which started from {begun or 'a LLaVA base'}, not {run.init_from}; {advice}")

    def _resume(self) -> None:
        run = self.run
        if run.resume:
            folder = Path(run.resume)
        elif run.auto_resume and (run.checkpoint_dir / "latest").is_file():
            folder = run.checkpoint_dir
        elif run.eval_only and not run.init_from:
            raise InputError(
                f"--eval_only: {run.checkpoint_dir} has no checkpoint; give --resume, --exp_name or --init_from"
            )
        else:
            return
        state = load_checkpoint(self.engine, folder)
        self.update, self.best_giou = state["update"], state["best_giou"]
        if state["images_per_update"] != self.images_per_update:
            logger.warning(
                "resuming with %d images per update, was %d: the data stream goes on, but not with the same batches",
                self.images_per_update,
                state["images_per_update"],
            )
        logger.info("resumed %s after update %d", folder, self.update)

    def _describe_run(self, training: TrainingModel) -> None:
        """Make the run directory describe itself: flags, architecture, tokenizer."""
        run_dir = self.run.run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run.save()
        with atomic_folder(run_dir / MODEL_FOLDER) as folder:
            training.config.save(folder)
            save_tokenizer(training.tokenizer, folder, source=training.base_folder)
        logger.info("run directory %s (%s, %s)", run_dir, RUN_CONFIG_FILE, MODEL_FOLDER)

    def _batches(self) -> Any:
        loader = build_loader(
            self.mixture,
            self.collator,
            start=self.update * self.images_per_update,
            count=(self.run.total_updates - self.update) * self.images_per_update,
            rank=dist.rank(),
            world_size=dist.world_size(),
            batch_size=self.run.batch_size,
            num_workers=self.run.workers,
            pin_memory=self.device.type == "cuda",
        )
        return read_batches(loader, self.skips)

    def _one_update(self, batches: Any) -> tuple[dict[str, float], int]:
        """Forward and backward ``grad_accumulation_steps`` times; returns mean loss parts over all processes."""
        sums = torch.zeros(len(_PARTS) + 1, device=self.device)
        self.engine.train()
        for _ in range(self.run.grad_accumulation_steps):
            with dist.stop_together():
                batch: Batch = next(batches).to(self.device, PRECISIONS[self.run.precision])
            terms = self._losses(batch)
            with dist.stop_together():
                self._check_finite(terms, batch)
            self.engine.backward(terms.total)
            self.engine.step()
            parts = [getattr(terms, part).detach().float() for part in _PARTS]
            sums += torch.stack([*parts, sums.new_tensor(terms.num_masks)])
        sums = dist.all_reduce_sum(sums).cpu()
        passes = self.run.grad_accumulation_steps * dist.world_size()
        means = {part: float(value) / passes for part, value in zip(_PARTS, sums, strict=False)}
        return means, int(sums[-1])

    def _check_finite(self, terms: LossTerms, batch: Batch) -> None:
        if not torch.isfinite(terms.total):
            raise InputError(
                f"the loss is {terms.total.item()} in update {self.update + 1}, at samples "
                f"{', '.join(batch.sample_ids)} (ce {terms.ce.item():.4g}, bce {terms.bce.item():.4g}, dice "
                f"{terms.dice.item():.4g}); nothing was updated. Lower --lr, or use --precision bf16 or fp32"
            )

    def _losses(self, batch: Batch) -> LossTerms:
        output = self.engine(batch)
        return pixellm_loss(
            output.lm_loss, output.mask_logits, batch.masks, output.query_index, self.weights, ignore=batch.ignore
        )

    def _log_update(
        self, bar: tqdm, terms: dict[str, float], num_masks: int, *, rate: float, seconds: float, remaining: float
    ) -> None:
        if not dist.is_main():
            return
        bar.update()
        bar.set_postfix_str(f"loss {terms['total']:.3f} lr {rate:.1e} ETA {tqdm.format_interval(remaining)}")
        record = {"update": self.update, "lr": rate, "seconds": round(seconds, 4), "masks": num_masks}
        self._json_log.write({**record, **{name: round(value, 6) for name, value in terms.items()}})
        for name, value in terms.items():
            self._board.add_scalar(f"train/{name}", value, self.update)
        self._board.add_scalar("train/lr", rate, self.update)
        self._board.add_scalar("metrics/seconds_per_update", seconds, self.update)
        if not self._has_terminal() and (self.update % self.run.print_freq == 0 or self.update == 1):
            parts = " ".join(f"{name} {value:.4f}" for name, value in terms.items() if name != "total")
            logger.info(
                "update %d/%d loss %.4f (%s) masks %d lr %.2e %.2f s/update ETA %s",
                self.update, self.run.total_updates, terms["total"], parts, num_masks, rate, seconds,
                tqdm.format_interval(remaining),
            )  # fmt: skip

    def _log_skips(self) -> None:
        """What all processes have left out of the data so far: samples by source and reason, and turns."""
        everybody = dist.gather_objects((self.skips.counts, self.skips.num_dropped_turns))
        counts = sum((counts for counts, _ in everybody), Counter())
        num_turns = sum(turns for _, turns in everybody)
        if not dist.is_main() or not (counts or num_turns):
            return
        logger.warning(
            "left out so far: %d turns that exceed --model_max_length; samples that cannot be used: %s",
            num_turns,
            describe_skips(counts) or "none",
        )
        by_source = [{"source": source, "reason": reason, "count": n} for (source, reason), n in counts.items()]
        self._json_log.write({"update": self.update, "skipped": by_source, "dropped_turns": num_turns})

    def _validate(self) -> None:
        """Teacher-forced IoU on every validation set; the gIoU of the first one is the score of the run."""
        for index, source in enumerate(self.val_sources):
            meter = validate_teacher_forced(
                self.engine, source, self.encoder, self.collator,
                batch_size=self.run.val_batch_size, device=self.device, dtype=PRECISIONS[self.run.precision],
            )  # fmt: skip
            logger.info("%s (teacher-forced): gIoU %.4f cIoU %.4f", source.name, meter.giou, meter.ciou)
            if index == 0:
                self.best_giou = max(self.best_giou, meter.giou)
            if dist.is_main():
                record = {"update": self.update, "val": source.name, "protocol": "teacher-forced"}
                self._json_log.write({**record, "giou": meter.giou, "ciou": meter.ciou})
                self._board.add_scalar(f"val/{source.name}/giou", meter.giou, self.update)
                self._board.add_scalar(f"val/{source.name}/ciou", meter.ciou, self.update)

    def _save(self) -> None:
        state = {"update": self.update, "best_giou": self.best_giou, "images_per_update": self.images_per_update}
        save_checkpoint(self.engine, self.run.checkpoint_dir, update=self.update, state=state)
        logger.info("saved %s after update %d", self.run.checkpoint_dir, self.update)

    @staticmethod
    def _has_terminal() -> bool:
        return dist.is_main() and sys.stderr.isatty()
