"""The folder of one run: the names in it, what describes the run, and the checkpoints that it holds."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import read_object, write_json
from model.outputs import atomic_folder
from model.text.tokenizer import add_codebook, load_tokenizer, save_tokenizer
from utils.cli.config import RunConfig

from .checkpoints import LATEST, step_names

logger = logging.getLogger(__name__)

# A weight file lies in the run directory or in a folder below it: a checkpoint's step at the deepest.
_LEVELS_ABOVE_A_WEIGHT = 3


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

    @classmethod
    def above(cls, weight: Path) -> RunDirectory | None:
        """The run directory that a weight file or a checkpoint folder lies in; None if it lies in none."""
        for folder in (weight, *list(weight.resolve().parents)[:_LEVELS_ABOVE_A_WEIGHT]):
            if cls(folder).flags_file.is_file():
                return cls(folder)
        return None

    @property
    def flags_file(self) -> Path:
        return self.path / "run_config.json"

    @property
    def model_folder(self) -> Path:
        """config.json and the tokenizer of the run."""
        return self.path / "model_config"

    @property
    def checkpoints(self) -> Path:
        """What DeepSpeed writes, one folder per step."""
        return self.path / "ckpt_model"

    @property
    def log_file(self) -> Path:
        return self.path / "log.jsonl"

    def describe(
        self, run: RunConfig, config: PixelLMConfig, tokenizer: LlamaTokenizer, *, tokenizer_source: Path
    ) -> None:
        """Write down the run: flags, architecture, tokenizer; the directory is made.

        Args:
            tokenizer_source: the folder whose tokenizer files are copied.
        """
        self.write_flags(run)
        with atomic_folder(self.model_folder) as folder:
            config.save(folder)
            save_tokenizer(tokenizer, folder, source=tokenizer_source)
        logger.info("run directory %s (%s, %s)", self.path, self.flags_file.name, self.model_folder.name)

    def write_flags(self, run: RunConfig) -> None:
        """Record the flags of the run; the directory is made."""
        write_json(self.flags_file, dataclasses.asdict(run))

    def read_flags(self) -> RunConfig:
        """The flags of the run.

        Raises:
            InputError: if the file is missing or damaged, or has keys that no flag has.
        """
        values: dict[str, Any] = read_object(self.flags_file)
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(RunConfig)})
        if unknown:
            raise InputError(f"{self.flags_file} has unknown keys {', '.join(unknown)}; was it edited?")
        return RunConfig(**values)

    def read_model(self) -> tuple[PixelLMConfig, LlamaTokenizer]:
        """Architecture and tokenizer of the run; the tokenizer has the codebook.

        Raises:
            InputError: if a file is missing or damaged.
        """
        config = PixelLMConfig.from_dict(read_object(self.model_folder / "config.json"))
        tokenizer = load_tokenizer(self.model_folder, model_max_length=config.model_max_length)
        add_codebook(tokenizer, scales=config.image_feature_scale_num, tokens=config.seg_token_num)
        return config, tokenizer

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a whole checkpoint to go on with."""
        return (self.checkpoints / LATEST).is_file()

    def refuse_used_name(self, run: RunConfig) -> None:
        """A run keeps one checkpoint, its own: under a used name it would remove that of the earlier run.

        Raises:
            InputError: if the directory holds a checkpoint that this run would not go on with.
        """
        steps = step_names(self.checkpoints)
        if run.eval_only or not steps:
            return
        holds = f"{self.checkpoints} holds {steps[-1]} of an earlier run"
        advice = "choose another --exp_name, or move the folder away"
        if run.resume and Path(run.resume).resolve() != self.checkpoints.resolve():
            raise InputError(f"{holds}, but --resume goes on with {run.resume}; {advice}")
        if run.resume:
            return
        if not run.auto_resume:
            raise InputError(f"{holds}, which --no_auto_resume would replace; {advice}")
        if not self.has_checkpoint:
            raise InputError(
                f"{holds}, but no file named {LATEST} that says whether it is whole; write its name into "
                f"{self.checkpoints / LATEST} to go on with it, {advice}"
            )
        begun = self.read_flags().init_from if self.flags_file.is_file() else run.init_from
        if run.init_from and run.init_from != begun:
            raise InputError(f"{holds}, which started from {begun or 'a LLaVA base'}, not {run.init_from}; {advice}")
