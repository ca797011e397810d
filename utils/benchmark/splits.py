"""Does it matter how an update is divided? The same batches, trained on by other processes, passes and ZeRO stages.

Every row is a real run of its own. The reference takes each update in one process and one forward pass, without ZeRO.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.files import read_object, write_json, write_text
from model.outputs import check_output_file
from utils.cli.config import RunConfig
from utils.data.paths import check_data_kept
from utils.training.deepspeed_config import deepspeed_settings

from .machine import describe_machine
from .training_runs import REPOSITORY, losses_of, told_flags

# Of an update in four parts: how many at a time, and how often.
SPLITS = ((1, 4), (2, 2), (4, 1))
_PARTS = 4
_LEGEND = """\
Processes x passes: so many processes, each with so many forward passes per update. The difference is the largest
relative one between the loss of an update and that of the reference, which log.jsonl has with six decimals. Seconds are
those of the whole run, its start included. `local` is the release's normalization (`--loss_normalization`)."""


@dataclass(frozen=True)
class Division:
    """How an update is made.

    Attributes:
        images: per process and pass.
    """

    optimizer: str
    stage: int
    processes: int
    passes: int
    images: int
    offload: bool = False
    normalization: str = "global"

    @property
    def name(self) -> str:
        zero = f"ZeRO-{self.stage}" + (" offload" if self.offload else "")
        return f"{self.optimizer}, {zero}, {self.processes}x{self.passes}, {self.normalization}"


@dataclass(frozen=True)
class Measured:
    """A run: the total loss of each update."""

    division: Division
    losses: list[float]
    seconds: float

    def difference(self, reference: Measured) -> float:
        pairs = zip(self.losses, reference.losses, strict=True)
        return max(abs(own - other) / abs(other) for own, other in pairs)


def divisions(batch_size: int, *, most_processes: int = _PARTS) -> Iterator[Division]:
    """References and what is compared with them; a reference comes first.

    Args:
        batch_size: images of a quarter of an update.
        most_processes: that this machine can give a device each.
    """
    for optimizer in ("adamw", "muon"):
        yield Division(optimizer, 0, 1, 1, _PARTS * batch_size)
        for stage in range(4):
            for processes, passes in SPLITS if stage == 2 else [(2, 2)]:
                if processes <= most_processes:
                    yield Division(optimizer, stage, processes, passes, batch_size)
        if optimizer == "adamw":  # Muon is refused with offload
            for stage in (1, 2, 3):
                if most_processes > 1:
                    yield Division(optimizer, stage, 2, 2, batch_size, offload=True)
            yield Division(optimizer, 0, 1, 4, batch_size, normalization="local")


def benchmark(run: RunConfig, given: Collection[str], *, updates: int, output_md: str) -> None:
    """Train ten updates or so, divided in every way, and print the losses.

    Args:
        run: flags of training; ``given`` names those that were given.
        output_md: a file for the tables.
    Raises:
        InputError: if a run stops, with its own last words, or the file cannot be written.
    """
    if output_md:
        check_output_file(output_md, flag="--output_md")
        check_data_kept(output_md, [run.dataset_dir], flag="--output_md")
    deepspeed_settings(run)  # named here if it cannot be used, not by the first run
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for division in divisions(run.batch_size, most_processes=torch.cuda.device_count() or _PARTS):
            found.append(measure(division, run, given, updates=updates, folder=Path(folder)))
            print(f"{division.name}: {found[-1].losses[-1]:.6f} after {found[-1].seconds:.0f} s", flush=True)
    report = "\n".join([table(found), "", _LEGEND, "", losses_table(found)])
    print(f"\n{report}")
    if output_md:
        images = f"{updates} updates of {_PARTS * run.batch_size} images, --precision {run.precision}."
        machine = describe_machine(("torch", "transformers", "deepspeed"))
        write_text(Path(output_md), f"# One update, divided in several ways\n\n{machine} {images}\n\n{report}\n")


def measure(division: Division, run: RunConfig, given: Collection[str], *, updates: int, folder: Path) -> Measured:
    """Start one run and read its log.

    Args:
        folder: for the run.
    Raises:
        InputError: if it stops.
    """
    zero = folder / "zero.json"
    how = {
        "batch_size": division.images, "grad_accumulation_steps": division.passes, "optimizer": division.optimizer,
        "loss_normalization": division.normalization, "steps_per_epoch": updates, "epochs": 1, "no_eval": True,
        "epoch_mode": "rates", "overwrite_run": False, "resume": "", "auto_resume": False, "release_recipe": False,
        "deepspeed_config": str(zero), "log_base_dir": str(folder), "exp_name": division.name.replace(", ", "-"),
    }  # fmt: skip
    write_json(zero, _zero_settings(run, division))
    started = time.perf_counter()
    losses = losses_of(told_flags(run, given) | how, label=division.name, processes=division.processes)
    return Measured(division, losses, time.perf_counter() - started)


def _zero_settings(run: RunConfig, division: Division) -> dict[str, Any]:
    """The run's own ``--deepspeed_config`` at another stage."""
    path = Path(run.deepspeed_config)
    settings = read_object(path if path.is_file() else REPOSITORY / path)
    zero = {key: value for key, value in settings.get("zero_optimization", {}).items() if key != "offload_optimizer"}
    zero["stage"] = division.stage
    if division.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return settings | {"zero_optimization": zero}


def _references(found: Sequence[Measured]) -> dict[str, Measured]:
    """The first run of each optimizer."""
    references: dict[str, Measured] = {}
    for measured in found:
        references.setdefault(measured.division.optimizer, measured)
    return references


def table(found: Sequence[Measured]) -> str:
    """One row per run, with the largest difference from the reference of its optimizer."""
    lines = [
        "| Optimizer | ZeRO | Normalization | Processes x passes | Largest difference | Last loss | Seconds |",
        "|---|---|---|---|---:|---:|---:|",
    ]
    references = _references(found)
    for measured in found:
        how, reference = measured.division, references[measured.division.optimizer]
        zero = f"{how.stage}, offload" if how.offload else str(how.stage)
        difference = "reference" if measured is reference else f"{measured.difference(reference):.1e}"
        lines.append(
            f"| {how.optimizer} | {zero} | {how.normalization} | {how.processes}x{how.passes} | {difference} "
            f"| {measured.losses[-1]:.6f} | {measured.seconds:.0f} |"
        )
    return "\n".join(lines)


def losses_table(found: Sequence[Measured]) -> str:
    """The losses of every update, of every run."""
    updates = len(found[0].losses)
    head = " | ".join(str(number + 1) for number in range(updates))
    lines = [f"| Loss of update | {head} |", f"|---|{'---:|' * updates}"]
    lines += [
        f"| {measured.division.name} | {' | '.join(f'{loss:.6f}' for loss in measured.losses)} |" for measured in found
    ]
    return "\n".join(lines)
