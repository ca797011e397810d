"""A program for a group of processes: checkpoints of every ZeRO stage, optimizer and precision, and who can read them.

shard_stages.py write FOLDER    every combination saves, goes on, and is taken up by another stage
shard_stages.py read FOLDER     the same checkpoints, taken up by another number of processes
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.configuration import PRECISIONS
from model.files import write_json
from utils import dist
from utils.cli.config import Optimizer, Precision, RunConfig
from utils.training.checkpoints import Contents, load_checkpoint, open_step, write_step
from utils.training.deepspeed_config import deepspeed_settings
from utils.training.engine import can_compute, init_distributed
from utils.training.optimizer import make_adamw, make_muon
from utils.training.parts import ADAM, FROZEN, MASTER, MUON
from utils.training.shards import read_loss_scale, steps_of
from utils.training.steps import damage_of
from utils.training.stored import Progress, StoredState

# ZeRO-3 keeps what is smaller whole on every process (persistent parameters); DeepSpeed's default would keep all.
PERSISTENT_BELOW = 20


class Small(nn.Module):
    """Parts that no number of processes divides evenly; the largest matrix lies in the parts of several processes."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.before = nn.Linear(5, 7), nn.Linear(7, 7)
        self.mask_decoder = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 9, bias=False), nn.Linear(9, 3))
        self.frozen.requires_grad_(False)
        self.register_buffer("constant", torch.rand(3))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.mask_decoder(self.before(self.frozen(inputs)).relu()) * self.constant


@dataclass(frozen=True)
class Kind:
    optimizer: Optimizer
    precision: Precision
    stage: int
    offload: bool = False
    sums_in_fp32: bool = False  # of gradients: another class of DeepSpeed

    @property
    def name(self) -> str:
        rest = "-offload" * self.offload + "-sums" * self.sums_in_fp32
        return f"{self.optimizer}-{self.precision}-{self.stage}{rest}"

    @property
    def next(self) -> Kind:
        """Another stage; in a circle, so that every one writes and reads."""
        fit = [kind for kind in KINDS if (kind.optimizer, kind.precision) == (self.optimizer, self.precision)]
        return fit[(fit.index(self) + 1) % len(fit)]


COMBINATIONS: tuple[tuple[Optimizer, Precision], ...] = (
    ("adamw", "fp32"), ("adamw", "bf16"), ("adamw", "fp16"), ("muon", "fp32"), ("muon", "bf16"),
)  # fmt: skip
KINDS = [
    Kind(optimizer, precision, stage, offload)
    for optimizer, precision in COMBINATIONS
    for stage, offload in product(range(4), (False, True))
    if not offload or (optimizer == "adamw" and precision == "bf16" and stage)
]
KINDS.append(Kind("adamw", "bf16", 1, sums_in_fp32=True))


class Run:
    """An engine over ``Small``, set up as training does."""

    def __init__(self, kind: Kind, folder: Path, *, seed: int = 0) -> None:
        import deepspeed

        self.kind, self.device = kind, DEVICE
        zero: dict[str, Any] = {"stage": kind.stage}
        if kind.stage == 3:
            zero["stage3_param_persistence_threshold"] = PERSISTENT_BELOW
        if kind.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        file = folder / f"{kind.name}-{dist.rank()}.json"
        types = {"grad_accum_dtype": "fp32"} if kind.sums_in_fp32 else {}
        write_json(file, {"zero_optimization": zero, "gradient_clipping": 1.0, "data_types": types})
        run = RunConfig(
            optimizer=kind.optimizer, precision=kind.precision, deepspeed_config=str(file), batch_size=1,
            grad_accumulation_steps=1, lr=1e-2, muon_lr=1e-2,
        )  # fmt: skip
        settings = deepspeed_settings(run)
        if kind.precision == "fp16":
            settings["fp16"]["initial_scale_power"] = 8
        torch.manual_seed(seed)
        network = Small().to(PRECISIONS[kind.precision])
        self.contents = Contents.of(network, {}, base_place="", precision=kind.precision)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = make_muon(run, network) if kind.optimizer == "muon" else make_adamw(run, trained)
        initialize: Any = deepspeed.initialize
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        self.engine, *_ = initialize(
            model=network, model_parameters=trained, optimizer=optimizer, lr_scheduler=schedule, config=settings
        )

    def update(self) -> Run:
        generator = torch.Generator().manual_seed(100 * self.engine.global_steps + dist.rank())
        inputs = torch.randn(4, 5, generator=generator).to(self.device, PRECISIONS[self.kind.precision])
        self.engine.backward(self.engine(inputs).float().square().mean())
        self.engine.step()
        return self

    @property
    def progress(self) -> Progress:
        return Progress(
            update=self.engine.global_steps,
            images_per_update=1,
            samples=self.engine.global_steps,
            processes=dist.world_size(),
            optimizer_steps=steps_of(self.engine),
            schedule_steps=self.engine.lr_scheduler.last_epoch,
            loss_scale=read_loss_scale(self.engine),
        )

    def save(self, step: Path) -> StoredState:
        """Written by all processes, and read again by each."""
        write_step(self.engine, step, self.progress, self.contents, describe=lambda folder: None)
        dist.barrier()
        return open_step(step)

    def load(self, step: Path) -> Run:
        load_checkpoint(self.engine, step, open_step(step), seed=0)
        return self


def check_same(found: StoredState, expected: StoredState, kind: Kind, what: str) -> None:
    """Two checkpoints are equal bit for bit."""
    record = expected.weights
    for name in record["frozen"]:
        assert torch.equal(found.read(FROZEN, name), expected.read(FROZEN, name)), f"{kind.name} {what}: {name}"
    for name in record["trained"]:
        uses_muon = kind.optimizer == "muon" and name.startswith("mask_decoder") and name.endswith("weight")
        for tensor in (MASTER, *(MUON if uses_muon else ADAM)):
            values, others = found.read(tensor, name), expected.read(tensor, name)
            # Muon's momentum has the precision of the gradients at some stages, and float32 at others.
            assert torch.equal(values, others.to(values.dtype)), f"{kind.name} {what}: {tensor} of {name}"


def check_written(kind: Kind, folder: Path) -> None:
    """What was saved goes on as if nothing had been, and is what DeepSpeed saves itself."""
    run = Run(kind, folder).update().update()
    step = folder / kind.name / "global_step2"
    stored = run.save(step)
    if kind.stage:
        theirs = folder / f"{kind.name}-deepspeed"
        run.engine.save_checkpoint(str(theirs), tag=step.name, client_state={"update": 2, "images_per_update": 1})
        dist.barrier()
        assert not (damage := damage_of(theirs / step.name)), f"{kind.name}: {damage}"
        check_same(open_step(theirs / step.name), stored, kind, "as DeepSpeed saves it")
    undisturbed = run.update().save(folder / f"{kind.name}-undisturbed/global_step3")
    again = Run(kind, folder, seed=1).load(step).update()
    resumed = again.save(folder / f"{kind.name}-resumed/global_step3")
    check_same(resumed, undisturbed, kind, "resumed")
    assert resumed.progress == undisturbed.progress


def check_read(writer: Kind, reader: Kind, folder: Path) -> None:
    """Another stage, or number of processes, holds exactly what was saved, and can go on."""
    step = folder / writer.name / "global_step2"
    run = Run(reader, folder, seed=1).load(step)
    name = f"{writer.name}-to-{reader.name}-{dist.world_size()}"
    stored = open_step(step)
    check_same(run.save(folder / name / "global_step2"), stored, writer, f"read by {reader.name}")
    run.update()
    # DeepSpeed makes no update whose gradients overflow fp16.
    assert steps_of(run.engine) - stored.progress.optimizer_steps == int(run.engine.was_step_applied()), name
    assert run.engine.was_step_applied() or writer.precision == "fp16", name


if __name__ == "__main__":
    what, folder = sys.argv[-2], Path(sys.argv[-1])
    DEVICE = init_distributed()
    logging.disable(logging.WARNING)
    computed = [kind for kind in KINDS if can_compute(kind.precision)]  # few CPUs have fp16
    for kind in computed if what == "write" else ():
        check_written(kind, folder)
    for kind in computed:
        check_read(kind, kind if what == "read" else kind.next, folder)
    if dist.is_main():
        print(f"passed: {what}", flush=True)
    with suppress(RuntimeError):
        dist.leave()
