"""Save a run to a step of its checkpoint folder, and put it back into an engine; every process takes part."""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from model.errors import InputError
from model.files import write_text
from model.outputs import atomic_folder, is_full
from utils import dist
from utils.cli.config import Precision

from . import zero_to_fp32
from .deepspeed_files import DeepSpeedStep, is_of_deepspeed
from .engine import Engine
from .lora import trained_names
from .shards import named_tensors, own_pieces, put_back, put_loss_scale, shape_of, trained_parameters
from .steps import (
    MANIFEST,
    best_step,
    is_step,
    latest_step,
    name_latest,
    prune,
    read_scores,
    record_of,
    step_folder,
    update_of,
    write_manifest,
    write_scores,
)
from .stored import (
    WEIGHTS,
    NotFinite,
    Progress,
    StoredState,
    StoredStep,
    WeightRecord,
    part_name,
    write_part,
    write_records,
)

logger = logging.getLogger(__name__)

SCRIPT = "zero_to_fp32.py"  # in a checkpoint folder, where the release's command line runs it
# Of each trained parameter: the weight itself and AdamW's two moments, in float32.
BYTES_PER_TRAINED_PARAMETER = 12


@dataclass(frozen=True)
class Contents:
    """What a checkpoint holds beside trained weights and their moments.

    Attributes:
        frozen: untrained weights and buffers that are saved: those that no base folder has.
        base: name -> fingerprint of the others, which are left to the base.
        base_place: hub name or absolute folder of the base.
        precision: of training.
    """

    frozen: frozenset[str]
    base: dict[str, str]
    base_place: str
    precision: Precision

    @classmethod
    def of(cls, network: nn.Module, base: dict[str, str], *, base_place: str, precision: Precision) -> Contents:
        """All that is needed beside the base.

        Args:
            network: with ``requires_grad`` set on what is trained.
            base: as ``fingerprint`` gives it; empty to save everything.
        """
        kept = network.state_dict().keys() - trained_names(network) - base.keys()
        # Scales of quantized weights, which only a state dict names, are made anew with these.
        named = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
        return cls(frozenset(kept & named), base, base_place, precision)


@dataclass
class Checkpoints:
    """Where a run is saved, and what is saved of it.

    Attributes:
        folder: one folder per step is made in it.
        keep: the last so many stay, and the best.
        scores: of the steps that have been validated, by their names.
    """

    folder: Path
    contents: Contents
    keep: int
    scores: dict[str, float] = field(default_factory=dict)

    def save(self, engine: Engine, progress: Progress, *, describe: Callable[[Path], None]) -> None:
        """Write a step, point ``latest`` at it, and drop what need not be kept.

        Args:
            describe: writes what the main process knows of the run into a folder.
        Raises:
            InputError: if a weight or moment is not finite, or it cannot be written. What was there before is whole.
        """
        step = step_folder(self.folder, progress.update)
        write_step(engine, step, progress, self.contents, describe=describe)
        with dist.stop_together(), _problems_told(step):
            if dist.is_main():
                name_latest(step)
                write_text(self.folder / SCRIPT, Path(zero_to_fp32.__file__).read_text(encoding="utf-8"))
                prune(self.folder, keep=self.keep)

    def refuse_diverged(self, update: int) -> None:
        """Called on all processes in place of ``save``, where the weights of an update are of no use.

        Raises:
            InputError: always.
        """
        with _problems_told(step_folder(self.folder, update)):
            raise NotFinite("the loss of the samples just learned is not finite")

    def copy_record(self, update: int, folder: Path) -> None:
        """Say in another folder, too, which weights are left to the base: for what ``zero_to_fp32.py`` writes there."""
        write_text(folder / WEIGHTS, (step_folder(self.folder, update) / WEIGHTS).read_text(encoding="utf-8"))

    def add_score(self, update: int, score: float) -> None:
        """The step of this update has been validated; called by the main process alone."""
        step = step_folder(self.folder, update)
        self.scores[step.name] = score
        write_scores(self.folder, self.scores)
        if best_step(self.folder) == step:
            logger.info("%s is the best so far (%.4f)", step, score)
        with _problems_told(step):
            prune(self.folder, keep=self.keep)

    def has_score(self, update: int) -> bool:
        """Whether the step of this update has been validated."""
        return step_folder(self.folder, update).name in self.scores

    def read_scores(self, known: dict[str, float]) -> None:
        """Go on with the scores of a checkpoint, and those that were written after it."""
        self.scores = {**known, **read_scores(self.folder)}


def write_step(
    engine: Engine, step: Path, progress: Progress, contents: Contents, *, describe: Callable[[Path], None]
) -> None:
    """Write one step: aside by all processes together, then synced and renamed."""
    with ExitStack() as unfinished:
        with dist.stop_together(), _problems_told(step):
            aside = unfinished.enter_context(atomic_folder(step)) if dist.is_main() else None
        aside = dist.gather_objects(aside)[0]
        assert aside is not None  # the main process has one
        file = aside / part_name(dist.rank() + 1, dist.world_size())
        with dist.stop_together(), _problems_told(step):
            write_part(file, own_pieces(engine, set(contents.frozen)), _random_states())
            record = record_of(file)
        records = dict(dist.gather_objects((file.name, record)))
        with dist.stop_together(), _problems_told(step):
            if dist.is_main():
                describe(aside)
                write_records(aside, progress, _weight_record(engine, contents))
                write_manifest(aside, records)
                unfinished.close()  # everything is synced, and renamed to its place


def open_step(step: Path) -> StoredState:
    """A step of this code, or one that DeepSpeed wrote.

    Raises:
        InputError: if it is damaged.
    """
    if is_of_deepspeed(step) and not (step / MANIFEST).exists():
        return DeepSpeedStep(step)
    stored = StoredStep(step)
    if is_step(step) and stored.progress.update != update_of(step):
        raise InputError(
            f"{step} says that it is of update {stored.progress.update}; give the folder its own name, or copy it again"
        )
    return stored


def load_checkpoint(engine: Engine, step: Path, stored: StoredState, *, seed: int) -> None:
    """Restore weights, optimizer, schedule, loss scale and random states, whatever ZeRO stage wrote them.

    Another number of processes goes on with random states drawn from ``seed`` and the update. The schedule's position
    is restored; its rates are those of this run, whose --lr or --epochs may be new.

    Raises:
        InputError: if a part is missing, or is not of this run's network.
    """
    _check_fit(engine, step, stored.weights)
    progress = stored.progress
    put_back(engine, set(stored.weights["frozen"]), stored.read, steps=progress.optimizer_steps)
    put_loss_scale(engine, progress.loss_scale)
    engine.global_steps = progress.update
    schedule = engine.lr_scheduler
    schedule.last_epoch = progress.schedule_steps
    rates = [
        rate * factor(schedule.last_epoch) for rate, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    schedule._last_lr = rates
    for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    _restore_random_state(stored, seed=seed)


def _restore_random_state(stored: StoredState, *, seed: int) -> None:
    progress = stored.progress
    for name, own in _random_states().items():
        state = stored.random_state(name) if progress.processes == dist.world_size() else None
        if state is None or (state.shape, state.dtype) != (own.shape, own.dtype):
            drawn = np.random.SeedSequence([seed, progress.update, dist.rank()]).generate_state(1)[0]
            torch.manual_seed(int(drawn))  # of every device
            return
        if name.startswith("cuda"):
            torch.cuda.set_rng_state(state)
        else:
            torch.set_rng_state(state)


def num_to_come(num_there: int, *, keep: int, epochs: int, validates: bool) -> int:
    """Checkpoints that a run adds to those that are there.

    At most the last ``keep``, the best, and the one that is written before another is removed.
    """
    return max(1, min(keep + validates + 1, epochs) - num_there)


def check_free_space(network: nn.Module, folder: Path, contents: Contents, *, num: int) -> None:
    """Before the first update: the disk takes the checkpoints that this run will add.

    Args:
        network: in training precision, with ``requires_grad`` set on what is trained.
        num: of them, as ``num_to_come`` gives it.
    Raises:
        InputError: if it does not.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    needed = BYTES_PER_TRAINED_PARAMETER * sum(parameter.numel() for parameter in trained)
    needed += sum(tensor.nbytes for name, tensor in network.state_dict().items() if name in contents.frozen)
    free = shutil.disk_usage(folder).free
    if free < num * needed:
        raise InputError(
            f"{folder} has {free / 2**30:.1f} GiB free, but a checkpoint of this run takes about "
            f"{needed / 2**30:.1f} GiB, and {num} of them must fit; make room, give another --log_base_dir, or keep "
            "fewer with --keep_checkpoints"
        )


def _weight_record(engine: Engine, contents: Contents) -> WeightRecord:
    tensors = named_tensors(engine)
    trained = trained_parameters(engine)
    return WeightRecord(
        trained={name: list(shape_of(tensor)) for name, tensor in trained.items()},
        frozen={name: list(shape_of(tensors[name])) for name in sorted(contents.frozen)},
        base=contents.base,
        base_place=contents.base_place,
        precision=contents.precision,
    )


def _check_fit(engine: Engine, step: Path, record: WeightRecord) -> None:
    trained, others = trained_parameters(engine), _untrained_shapes(engine)
    own = {name: list(shape_of(parameter)) for name, parameter in trained.items()}
    kept = {**dict.fromkeys(record["base"], "left to the base"), **record["frozen"]}
    pairs = [(name, record["trained"].get(name), own.get(name), "not trained") for name in {*own, *record["trained"]}]
    pairs += [(name, kept.get(name), others.get(name), "missing") for name in {*others, *kept}]
    for name, there, here, nothing in sorted(pairs, key=lambda pair: pair[0]):
        if there != here and not (there == "left to the base" and here):
            raise InputError(
                f"checkpoint {step} does not fit this run: {name} is {there or nothing} there and {here or nothing} "
                "here; resume with the flags it was started with, or choose another --exp_name"
            )


def _untrained_shapes(engine: Engine) -> dict[str, list[int]]:
    """Of untrained weights and the buffers that are saved."""
    tensors = named_tensors(engine)
    names = set(engine.module.state_dict()) - set(trained_parameters(engine))
    return {name: list(shape_of(tensors[name])) for name in names if name in tensors}


def _random_states() -> dict[str, Tensor]:
    states = {f"cpu/{dist.rank()}": torch.get_rng_state()}
    if torch.cuda.is_available():
        states[f"cuda/{dist.rank()}"] = torch.cuda.get_rng_state()
    return states


@contextmanager
def _problems_told(step: Path) -> Iterator[None]:
    """What keeps a checkpoint from being written, and what the run can go on from."""
    try:
        yield
    except Exception as err:
        before = latest_step(step.parent)
        kept = f"{before} is whole: the run goes on from there" if before else "nothing was saved before"
        if isinstance(err, NotFinite):
            raise InputError(
                f"{err} after update {update_of(step)}, so nothing was saved; start the run again with a lower --lr "
                f"({kept})"
            ) from err
        if isinstance(err, InputError) or not (isinstance(err, OSError | SafetensorError) or is_full(err)):
            raise
        why, remedy = str(err), "mend that"
        if is_full(err) and getattr(err, "errno", None) != errno.EROFS:
            why, remedy = f"the disk is full, or a quota is ({_free(step.parent)})", "make room"
        raise InputError(f"{step} cannot be written: {why}; {remedy} and start the run again ({kept})") from err


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 2**30:.2f} GiB free"
