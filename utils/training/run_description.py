"""What a run is (flags, architecture, tokenizer), written into each checkpoint and into the run directory."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaTokenizer

from model.configuration import PixelLMConfig
from model.errors import InputError
from model.files import is_file, read_object, write_json
from model.outputs import atomic_folder
from model.text.tokenizer import add_codebook, load_tokenizer, save_tokenizer
from utils.cli.config import RunConfig
from utils.data.names import split_names

from .steps import CHECKPOINTS, is_step, latest_step

logger = logging.getLogger(__name__)

# A weight file lies in the run directory or in a folder below it: a checkpoint's step at the deepest.
_LEVELS_ABOVE_A_WEIGHT = 3
# Flags that say how to start, not what the run is.
_OF_A_START = ("local_rank", "resume", "auto_resume", "overwrite_run", "eval_only", "overfit_one_batch", "exp_name")
# What a file says without words that was written before a flag existed.
_BEFORE_THERE_WAS_A_FLAG = {"loss_normalization": "local", "shared_prefix": False}
# What these name may lie elsewhere now; the weights of --init_from are held to their fingerprints.
_PLACES = ("init_from", "custom_data", "preprocessor_config")
_WHY_FIXED = {"checkpoint": "the checkpoint's contents depend on it", "samples": "the stream of samples depends on it"}


@dataclass(frozen=True)
class RunDescription:
    """``run_config.json`` and ``model_config/`` in a folder.

    Each checkpoint has its own, which is the truth about it. The run directory has a copy for people, and for the
    checkpoints of versions that wrote no other.

    Attributes:
        folder: a step of a checkpoint, or a run directory; it need not exist yet.
    """

    folder: Path

    @classmethod
    def of_weight(cls, weight: Path) -> RunDescription | None:
        """The description of a checkpoint folder, one of its steps, or of weights that lie in a run directory.

        It is that of the step itself, else of the step that ``latest`` names; checkpoints of versions that did not
        describe them have that of their run directory.

        Returns:
            None if nothing describes the weights.
        """
        resolved = weight.resolve()
        folders = [resolved, *list(resolved.parents)[:_LEVELS_ABOVE_A_WEIGHT]]
        in_step = any(is_step(folder) for folder in folders)
        for folder in folders:
            latest = () if in_step else (latest_step(folder), latest_step(folder / CHECKPOINTS))
            for place in (*latest, folder):
                if place is not None and cls(place).exists:
                    return cls(place)
        return None

    @property
    def exists(self) -> bool:
        return is_file(self.flags_file)

    @property
    def flags_file(self) -> Path:
        return self.folder / "run_config.json"

    @property
    def model_folder(self) -> Path:
        """config.json and the tokenizer of the run."""
        return self.folder / "model_config"

    def write(self, run: RunConfig, config: PixelLMConfig, tokenizer: LlamaTokenizer, *, source: Path) -> None:
        """Write flags, architecture and tokenizer; the folder is made.

        Args:
            source: the folder whose tokenizer files are copied.
        """
        self.write_flags(run)  # first: a model folder without flags beside it is none of ours
        with atomic_folder(self.model_folder) as folder:
            config.save_pretrained(folder)
            save_tokenizer(tokenizer, folder, source=source)

    def write_flags(self, run: RunConfig) -> None:
        """Record the flags of the run; the folder is made."""
        write_json(self.flags_file, dataclasses.asdict(run))

    def read_flags(self) -> RunConfig:
        """The flags of the run; a flag that is younger than the file has the value that stands for what was done then.

        Raises:
            InputError: if the file is missing or damaged, or has keys that no flag has.
        """
        values: dict[str, Any] = {**_BEFORE_THERE_WAS_A_FLAG, **read_object(self.flags_file)}
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(RunConfig)})
        if unknown:
            raise InputError(f"{self.flags_file} has unknown keys {', '.join(unknown)}; was it edited?")
        try:
            return RunConfig(**values)
        except InputError as err:
            raise InputError(f"{self.flags_file}: {err}; was it edited?") from err

    def read_model(self) -> tuple[PixelLMConfig, LlamaTokenizer]:
        """Architecture and tokenizer of the run; the tokenizer has the codebook.

        Raises:
            InputError: if a file is missing or damaged.
        """
        config = PixelLMConfig.from_pretrained(self.model_folder)
        tokenizer = load_tokenizer(self.model_folder, model_max_length=config.model_max_length)
        add_codebook(tokenizer, scales=config.image_feature_scale_num, tokens=config.seg_token_num)
        return config, tokenizer


def refuse_changes(before: RunConfig, now: RunConfig, *, checkpoint: Path) -> None:
    """What the network or the samples depend on stays as it was when a run is resumed.

    Args:
        before: the flags that the checkpoint was written with.
    Raises:
        InputError: for the first flag that differs and is declared ``fixed``. ``eval_only`` draws no samples, and what
            a flag names may have moved.
    """
    reasons = {field.name: field.metadata["fixed"] for field in dataclasses.fields(RunConfig)}
    for name, (old, new) in _changed(before, now).items():
        if name in _PLACES and is_moved(name, old, new):
            continue
        if reasons[name] and not (now.eval_only and reasons[name] == "samples"):
            raise InputError(
                f"--{name} is {new!r}, but {checkpoint} was trained with {old!r}, and {_WHY_FIXED[reasons[name]]}; "
                f"resume with {_as_flag(name, old)}, or choose another --exp_name"
            )


def is_moved(flag: str, before: str, now: str) -> bool:
    """Whether a flag names the same files or folders as before, joined by ||, at other places: there is nothing at the
    old ones. Files keep their names; a model is known by its weights.
    """
    olds, news = split_names(before), split_names(now)
    return len(olds) == len(news) and all(
        _is_same(old, new, renamed=flag == "init_from") for old, new in zip(olds, news, strict=True)
    )


def _is_same(old: str, new: str, *, renamed: bool) -> bool:
    before, now = os.path.expanduser(old), os.path.expanduser(new)
    if os.path.exists(before) and os.path.exists(now):
        return os.path.samefile(before, now)
    moved = os.path.exists(now) and not os.path.exists(before)
    return old == new or (moved and (renamed or os.path.basename(before) == os.path.basename(now)))


def log_changes(before: RunConfig, now: RunConfig) -> None:
    """Say in one line what a resumed run does otherwise than before."""
    changes = [f"--{name} {new!r} (was {old!r})" for name, (old, new) in _changed(before, now).items()]
    if changes:
        logger.info("changed since the checkpoint: %s", ", ".join(changes))


def _changed(before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Flags that have an effect and differ -> both values."""
    changed = {}
    for field in dataclasses.fields(RunConfig):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if old != new and field.name not in _OF_A_START and not field.metadata["unused"]:
            changed[field.name] = (old, new)
    return changed


def _as_flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no_{name}"
    return f"--{name}={value}" if value != "" else f"no --{name}"
