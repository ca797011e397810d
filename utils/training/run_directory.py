"""The folder of one run: the names in it, and what a start may do with what it finds there."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from model.errors import InputError
from model.outputs import check_output_file, name_aside
from utils.cli.config import RunConfig

from .run_description import RunDescription, is_moved, refuse_changes
from .run_lock import LOCK_FILE, RunLock
from .steps import CHECKPOINTS, LATEST, find_whole_step, step_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps everything; the one place that knows the names.

    Attributes:
        path: the folder, which need not exist yet.
    """

    path: Path

    @classmethod
    def of(cls, run: RunConfig) -> RunDirectory:
        """The directory that the flags name."""
        return cls(run.run_dir)

    @property
    def description(self) -> RunDescription:
        """The copy for people of what each checkpoint says of itself."""
        return RunDescription(self.path)

    @property
    def checkpoints(self) -> Path:
        """One folder per step."""
        return self.path / CHECKPOINTS

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    @property
    def pictures(self) -> Path:
        """Of validation samples."""
        return self.path / "pictures"

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is any step, whole or not."""
        return bool(step_names(self.checkpoints))

    def check_start(self, run: RunConfig) -> Path | None:
        """Hold a start to what the directory and the checkpoint that it goes on with say; nothing is written.

        Returns:
            the step that the start goes on with; None if it begins anew.
        Raises:
            InputError: if it would replace the checkpoint of an earlier run, or go on with one otherwise than it was
                trained, or if no checkpoint of the folder is whole.
        """
        if run.overfit_one_batch and self.has_checkpoint:
            raise InputError(
                f"{self.checkpoints} holds a run, but --overfit_one_batch writes into {self.path}; choose another "
                "--exp_name"
            )
        if run.overwrite_run:
            self._check_overwrite(run)
        else:
            self._refuse_used_name(run)
            self._refuse_foreign()
        step = self._step_to_resume(run)
        if step is not None:
            self._refuse_other_model(run, step)
            _check_resume(run, step)
        elif run.eval_only and not run.init_from:
            raise InputError(
                f"--eval_only: {self.checkpoints} has no checkpoint; give --resume, --exp_name or --init_from"
            )
        return step

    def _step_to_resume(self, run: RunConfig) -> Path | None:
        if run.resume:
            if (step := find_whole_step(Path(run.resume))) is None:
                raise InputError(f"--resume {run.resume} holds no checkpoint; give the ckpt_model folder of a run")
            return step
        return find_whole_step(self.checkpoints) if run.auto_resume and not run.overwrite_run else None

    def _refuse_used_name(self, run: RunConfig) -> None:
        """A run keeps its own checkpoints: under a used name it would replace those of the earlier run."""
        if run.eval_only or not self.has_checkpoint:
            return
        if run.resume and os.path.realpath(run.resume) != os.path.realpath(self.checkpoints):
            raise InputError(f"{self._holds}, but --resume goes on with {run.resume}; {self._advice}")
        if not run.resume and not run.auto_resume:
            raise InputError(f"{self._holds}, which --no_auto_resume would replace; {self._advice}")

    def _refuse_other_model(self, run: RunConfig, step: Path) -> None:
        """A run that goes on does not start from another model."""
        if run.resume or run.eval_only:
            return
        description = RunDescription.of_weight(step)
        begun = description.read_flags().init_from if description else run.init_from
        if run.init_from and not (begun and is_moved("init_from", begun, run.init_from)):
            raise InputError(
                f"{self._holds}, which started from {begun or 'a LLaVA base'}, not {run.init_from}; {self._advice}"
            )

    @property
    def _holds(self) -> str:
        return f"{self.checkpoints} holds {', '.join(step_names(self.checkpoints))} of an earlier run"

    @property
    def _advice(self) -> str:
        return (
            f"go on with it (--resume {self.checkpoints}), choose another --exp_name, or set it aside with "
            "--overwrite_run"
        )

    def _refuse_foreign(self) -> None:
        """What lies under the names that a run writes must be a run's."""
        for file in (self.log_file, self.description.flags_file, self.checkpoints / LATEST):
            check_output_file(file)
        for name in step_names(self.checkpoints):
            if not (self.checkpoints / name).is_dir():
                raise InputError(
                    f"{self.checkpoints / name} is no folder, but has the name of a checkpoint; move it, or choose "
                    "another --exp_name"
                )
        folder = self.description.model_folder
        is_ours = folder.is_dir() and (self.description.exists or not any(folder.iterdir()))
        if os.path.lexists(folder) and not is_ours:
            raise InputError(
                f"{folder} would be replaced, but no {self.description.flags_file.name} beside it says that a run "
                "wrote it; move it, or choose another --exp_name"
            )

    def _check_overwrite(self, run: RunConfig) -> None:
        if run.eval_only:
            raise InputError(
                "--overwrite_run is for a run that starts anew, but --eval_only trains nothing; leave one out"
            )
        for name in ("resume", "init_from", "version", "vision_tower", "dataset_dir"):
            value = getattr(run, name)
            if value and Path(os.path.realpath(value)).is_relative_to(os.path.realpath(self.path)):
                raise InputError(
                    f"--{name} {value} lies in {self.path}, which --overwrite_run would rename; choose another "
                    "--exp_name, or copy it elsewhere first"
                )

    def set_aside(self, lock: RunLock) -> None:
        """Rename the directory to the first free name ``NAME.old-1``, ``NAME.old-2``, ... and begin an empty
        one; an empty directory stays.

        Args:
            lock: of this directory; it comes to hold the empty one.
        Raises:
            InputError: if the directory cannot be renamed.
        """
        if not any(path.name != LOCK_FILE for path in self.path.iterdir()):
            return
        aside = name_aside(self.path)
        try:
            lock.begin_anew(aside)
        except OSError as err:
            raise InputError(
                f"{self.path} cannot be renamed to {aside} ({err.strerror}); choose another --exp_name"
            ) from err
        logger.warning("--overwrite_run: the earlier run is now %s", aside)


def _check_resume(run: RunConfig, step: Path) -> None:
    description = RunDescription.of_weight(step)
    if description is None:
        logger.warning("nothing says which flags %s was trained with; they have to be the same", step)
    else:
        refuse_changes(description.read_flags(), run, checkpoint=step)
