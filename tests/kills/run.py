"""Kill training at random moments, start it again by the same command, and compare with an undisturbed run.

python -m tests.kills.run --kills 100 --seed 0 --folder /tmp/kills

Each kill is a SIGKILL to the launcher, to a process of training, or to a worker of its loader; a third of them inside a
save, in which one process may lag behind. After each, everything has to be gone within 60 s, the checkpoint folder has
to hold a whole step (once there was one), and the same command has to go on from it. Weights, moments and random states
of the last checkpoint have to be those of the undisturbed run, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from model.errors import InputError
from tests.support.launch import TRAIN_FLAGS
from tests.support.tiny_world import TinyWorld, write_tiny_world
from utils.training.steps import find_whole_step, latest_step, step_names

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("program.py")
UPDATES, UPDATES_PER_SAVE = 18, 2
GONE_WITHIN_S = 60.0
_PATIENCE_S = 240.0  # for a start to get anywhere
LAUNCHERS = {
    "torchrun": ("torchrun", "--standalone", "--nproc_per_node=2"),
    "deepspeed": ("deepspeed", "--num_gpus=2", "--master_port={port}"),
}


class Failed(Exception):
    """What must not happen."""


@dataclass
class Tally:
    """What was done, and how long processes took to be gone."""

    kills: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    starts: int = 0

    def describe(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.kills.items()))
        slowest = max(self.seconds, default=0.0)
        total = sum(self.kills.values())
        return f"{total} kills in {self.starts} starts ({kinds}); all gone after at most {slowest:.1f} s"


class Run:
    """One run directory and the command that trains it.

    Args:
        folder: of runs.
        launcher: a key of ``LAUNCHERS``.
    """

    def __init__(self, world: TinyWorld, folder: Path, name: str, launcher: str) -> None:
        own = ["--no_eval", f"--epochs={UPDATES // UPDATES_PER_SAVE}", f"--steps_per_epoch={UPDATES_PER_SAVE}"]
        where = [f"--log_base_dir={folder}", f"--exp_name={name}", "--grad_accumulation_steps=1", "--lora_dropout=0.1"]
        self._flags = [*world.arguments, *TRAIN_FLAGS, *own, *where]
        self._launcher = LAUNCHERS[launcher]
        self.folder = folder / name
        self._out = folder / f"{name}.out"
        self._process: psutil.Popen | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "ckpt_model"

    @property
    def updates(self) -> int:
        """Lines that the run has logged."""
        log = self.folder / "log.jsonl"
        return log.read_bytes().count(b'"total"') if log.is_file() else 0

    @property
    def output(self) -> str:
        """What the last start printed."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def mark(self) -> Path:
        return self.folder.with_suffix(".saving")

    def start(self, *, delay: str = "") -> None:
        """Start the command in a session of its own.

        Args:
            delay: "RANK:SECONDS" that this process takes longer to write its part of every checkpoint.
        """
        self.mark.unlink(missing_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        if delay:
            environment |= {"KILLS_MARK": str(self.mark), "KILLS_DELAY": delay}
        command = [part.format(port=free_port()) for part in self._launcher]
        with self._out.open("w", encoding="utf-8") as out:
            self._process = psutil.Popen(
                [*command, str(PROGRAM), *self._flags], cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> int:
        """The exit code of a start that nobody disturbs."""
        assert self._process is not None
        return self._process.wait(_PATIENCE_S)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.is_running() and self._process.status() != "zombie"

    def processes(self) -> dict[str, list[psutil.Process]]:
        """Those that are alive, by what they are: launcher, rank, worker, or other, such as Python's own helpers."""
        assert self._process is not None
        found: dict[str, list[psutil.Process]] = {"launcher": [], "rank": [], "worker": [], "other": []}
        try:
            family = [self._process, *self._process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return found
        for process in family:
            try:
                command, parent = process.cmdline(), process.parent()
                above = parent.cmdline() if parent else []
            except psutil.NoSuchProcess:
                continue
            if str(PROGRAM) in command[1:3]:
                found["worker" if str(PROGRAM) in above[1:3] else "rank"].append(process)
            else:
                found["launcher" if str(PROGRAM) in command else "other"].append(process)
        return found

    def all_alive(self) -> list[psutil.Process]:
        return [process for kind in self.processes().values() for process in kind]


def free_port() -> int:
    """One that nobody has, outside the range from which the system gives out ports by itself."""
    while True:
        port = random.randint(10000, 30000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until_gone(processes: list[psutil.Process], run: Run) -> float:
    """Seconds until none is alive."""
    began = time.time()
    _, alive = psutil.wait_procs(processes, timeout=GONE_WITHIN_S)
    alive = [process for process in alive if process.is_running() and process.status() != "zombie"]
    if alive:
        names = [f"{process.pid} {' '.join(process.cmdline()[:4])}" for process in alive]
        raise Failed(f"alive {GONE_WITHIN_S:.0f} s after a kill: {names}\n{run.output}")
    return time.time() - began


def wait_for(what: str, condition, run: Run) -> bool:
    """Wait until a condition holds; False if the run ends before."""
    end = time.time() + _PATIENCE_S
    while not condition():
        if not run.is_running:
            return False
        if time.time() > end:
            raise Failed(f"{what} did not come in {_PATIENCE_S:.0f} s\n{run.output}")
        time.sleep(0.01)
    return True


def kill_once(run: Run, rng: random.Random, tally: Tally) -> bool:
    """Start, wait for a random moment, kill; False if the run was complete before that."""
    moment = rng.choices(("start", "update", "save"), weights=(1, 4, 3))[0]
    before = run.updates
    lag = rng.choice((0.3, 1.0, 2.0))
    run.start(delay=f"{rng.randrange(2)}:{lag}" if moment == "save" else "")
    tally.starts += 1
    if moment == "start":
        time.sleep(rng.uniform(0.5, 6.0))
    elif moment == "update":
        wanted = before + rng.randint(1, 5)
        if wait_for("an update", lambda: run.updates >= wanted, run):
            time.sleep(rng.uniform(0.0, 0.3))
    elif wait_for("a save", run.mark.exists, run):
        time.sleep(rng.uniform(0.0, lag + 0.2))
    everyone, kinds = run.all_alive(), run.processes()
    kind = rng.choice([kind for kind in ("launcher", "rank", "worker") if kinds[kind]] or [""])
    if not kind:
        return False
    victim = rng.choice(kinds[kind])
    try:
        victim.kill()
    except psutil.NoSuchProcess:
        return False
    tally.kills[f"{kind} in {moment}"] += 1
    tally.seconds.append(wait_until_gone(everyone, run))
    return True


def check_checkpoints(run: Run, *, had_one: bool) -> bool:
    """Hold the folder to what a kill may leave; returns whether it has a checkpoint."""
    try:
        step = find_whole_step(run.checkpoints)
    except InputError as err:
        raise Failed(f"after a kill: {err}") from err
    if had_one and step is None:
        raise Failed(f"the checkpoint of {run.folder} is gone")
    if step is not None and latest_step(run.checkpoints) not in (step, None):
        raise Failed(f"latest names {latest_step(run.checkpoints)}, which is not whole: {step_names(run.checkpoints)}")
    return step is not None


def state_of(run: Run) -> dict[str, torch.Tensor]:
    """Everything in the last checkpoint's files of tensors."""
    step = run.checkpoints / f"global_step{UPDATES}"
    files = sorted(step.glob("state-*.safetensors"))
    return {f"{file.name}/{key}": tensor for file in files for key, tensor in load_file(file).items()}


def compare(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Raises Failed unless every tensor is equal bit for bit."""
    if set(found) != set(expected):
        raise Failed(f"the checkpoints hold different tensors: {sorted(set(found) ^ set(expected))[:3]}")
    differ = [name for name in expected if not torch.equal(found[name], expected[name])]
    if differ:
        raise Failed(f"{len(differ)} of {len(expected)} tensors differ from the undisturbed run's, first {differ[0]}")


def kill_many(folder: Path, *, kills: int, seed: int, launchers: Sequence[str] = tuple(LAUNCHERS)) -> Tally:
    """So many kills of runs in a folder, each run to its end.

    Args:
        launchers: keys of ``LAUNCHERS`` to draw from.
    Raises:
        Failed: if a run does not go on, loses a checkpoint, or ends otherwise than the undisturbed one.
    """
    rng, tally = random.Random(seed), Tally()
    world = write_tiny_world(folder / "world")
    whole = Run(world, folder, "whole", "torchrun")
    whole.start()
    if code := whole.wait():
        raise Failed(f"the undisturbed run ended with code {code}\n{whole.output}")
    expected, number = state_of(whole), 0
    while sum(tally.kills.values()) < kills:
        number += 1
        run = Run(world, folder, f"run{number}", rng.choice(launchers))
        saved = False
        while sum(tally.kills.values()) < kills and kill_once(run, rng, tally):
            saved = check_checkpoints(run, had_one=saved)
        run.start()
        tally.starts += 1
        if code := run.wait():
            raise Failed(f"the same command ended with code {code}\n{run.output}")
        compare(state_of(run), expected)
        print(f"{tally.describe()}; {run.folder.name} is equal to the undisturbed run", flush=True)
        shutil.rmtree(run.folder)
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=None, help="default is a temporary one")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = flags.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            print(kill_many(folder, kills=flags.kills, seed=flags.seed).describe())
        except Failed as err:
            sys.exit(f"failed: {err}")


if __name__ == "__main__":
    main()
