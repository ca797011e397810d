"""A run that a signal stops saves and says so; one that loses a process says which, and ends everywhere."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.support.fork_server import ForkServer
from tests.support.launch import NUM_PROCESSES, TRAIN_FLAGS, Finished, deepspeed, run
from tests.support.tiny_world import TinyWorld
from utils.training.peers import EXIT_LOST_PEER

# The same main(), in which something happens in update 3, when processes have agreed that no signal has come before it,
# or in the validation after update 2. An epoch has two updates.
PROGRAM = """
import os, signal, sys, time
sys.path.insert(0, {repository!r})
import psutil
import train_ds
from utils.training import memory, peers, stop, trainer
from utils.training.gradients import GradientGuard
from utils.training.trainer import Trainer

import torch
rank = int(os.environ.get("RANK", "0"))
step, validate = GradientGuard.step, Trainer.validate

def in_update(self, engine, *, update, agree):
    if update == 3:
        {update}
    time.sleep(0.1 * (update > 3))  # time for a thread to look
    return step(self, engine, update=update, agree=agree)

def in_validation(self, stopping):
    {validation}
    validate(self, stopping)

GradientGuard.step, Trainer.validate = in_update, in_validation
{settings}
if __name__ == "__main__":
    sys.exit(train_ds.main())
"""
two_processes = pytest.mark.skipif(NUM_PROCESSES < 2, reason="two processes or more")


class Starts:
    """Starts the program in a folder of its own."""

    def __init__(self, world: TinyWorld, forks: ForkServer, repository: Path, folder: Path) -> None:
        self._world, self._forks, self._repository, self._folder = world, forks, repository, folder

    def __call__(
        self, launcher: str, *, update: str = "pass", validation: str = "pass", settings: str = ""
    ) -> Finished:
        program = self._folder / "program.py"
        text = PROGRAM.format(repository=str(self._repository), update=update, validation=validation, settings=settings)
        program.write_text(text, encoding="utf-8")
        flags = [*self._world.arguments, *TRAIN_FLAGS, f"--log_base_dir={self._folder}", "--exp_name=run"]
        command = [program, *flags, "--epochs=50", "--grad_accumulation_steps=1", "--print_freq=100"]
        if launcher == "deepspeed":
            return deepspeed(*command, cwd=self._repository)
        if launcher == "torchrun":
            return run(["torchrun", "--nproc_per_node=2", "--standalone", *command], cwd=self._repository)
        return self._forks.python(*command, processes=2 if launcher == "none, two processes" else 1)

    @property
    def folder(self) -> Path:
        return self._folder / "run"

    @property
    def saved(self) -> str:
        return (self._folder / "run/ckpt_model/latest").read_text(encoding="utf-8").strip()

    @property
    def updates(self) -> list[int]:
        lines = (self._folder / "run/log.jsonl").read_text(encoding="utf-8").splitlines()
        return [record["update"] for record in map(json.loads, lines) if "total" in record]


@pytest.fixture
def start(tiny_world: TinyWorld, forks, repository, tmp_path) -> Starts:
    return Starts(tiny_world, forks, repository, tmp_path)


def says_who_died(finished: Finished, start: Starts, *, who: str, how: str) -> None:
    assert len(finished.errors) == 1, finished.text
    (error,) = finished.errors
    assert error.startswith(f"error: {who} (pid ")
    assert f"{how}, so the run ends. The same command goes on from " in error
    assert error.endswith("run/ckpt_model/global_step2")
    before, _, _ = finished.stderr.partition(error)
    assert "Traceback" not in before, "the line comes first"
    assert start.saved == "global_step2"


@two_processes
def test_a_process_that_is_killed_in_an_update_is_named_first(start):
    finished = start("deepspeed", update="if rank == 0: os.kill(os.getpid(), signal.SIGKILL)")
    says_who_died(finished, start, who="process 0", how="a system that is out of memory)")
    assert "was killed by SIGKILL" in finished.text
    assert "Traceback" not in finished.text


@two_processes
def test_who_died_is_said_though_the_launcher_ends_the_others_before_it_is_known(start):
    """Their collective has failed by then; an unhandled SIGTERM would end them without a word."""
    settings = """
judge = peers.PeerWatch._judge
late = lambda: (time.sleep(1), os.kill(os.getpid(), signal.SIGTERM), time.sleep(1))
peers.PeerWatch._judge = lambda *seen: (late(), judge(*seen))
"""
    finished = start("none, two processes", update="if rank == 1: os.kill(os.getpid(), 9)", settings=settings)
    assert len(finished.errors) == 1, finished.text
    (error,) = finished.errors
    assert error.startswith("error: process 1 (pid ")
    assert "The same command goes on from " in error
    assert "stopped by SIGTERM" not in finished.text


@pytest.mark.long
@two_processes
def test_a_process_that_is_killed_in_validation_is_named_first(start):
    finished = start("torchrun", validation="if rank == 1: os.kill(os.getpid(), signal.SIGSEGV)")
    says_who_died(finished, start, who="process 1", how="was ended by SIGSEGV")
    assert f"exitcode  : {EXIT_LOST_PEER}" in finished.text, "of the other process, as torchrun reports it"


@pytest.mark.long
@two_processes
def test_a_process_of_another_machine_that_falls_silent_is_named(start):
    """Both processes believe that they are alone on their machine; the death shows as silence."""
    settings = "peers._machine = lambda: str(rank); peers._BEAT_SECONDS, peers._SILENT_SECONDS = 1.0, 4.0"
    finished = start("deepspeed", update="if rank == 1: os.kill(os.getpid(), signal.SIGKILL)", settings=settings)
    says_who_died(finished, start, who="process 1", how="has given no sign of life for 4 s")


@pytest.mark.parametrize("launcher", ["none, two processes", pytest.param("deepspeed", marks=pytest.mark.long)])
@two_processes
def test_a_signal_to_one_process_stops_all_after_the_update_which_is_saved(start, launcher):
    finished = start(launcher, update="if rank == 1: os.kill(os.getpid(), signal.SIGTERM)")
    assert finished.code == 143, finished.text
    assert "stopped by SIGTERM after update 4; the same command goes on" in finished.text
    assert (start.saved, start.updates) == ("global_step4", [1, 2, 3, 4])
    assert finished.text.count("update 4/100 loss ") == 1, "the console tells of the last update"
    assert not finished.errors
    assert "Traceback" not in finished.text


@pytest.mark.long
@two_processes
def test_the_deepspeed_command_hands_no_signal_on_but_its_end_is_seen(start):
    finished = start("deepspeed", update="if rank == 0: stop.launchers()[-1].terminate()")
    assert finished.code == -15, finished.text
    assert "the launcher has ended" in finished.text
    assert "stopped by SIGTERM after update " in finished.text
    assert start.saved == f"global_step{start.updates[-1]}"
    assert start.updates[-1] < 100


def test_a_signal_to_the_whole_group_leaves_the_workers_at_work(start):
    """As a terminal's Ctrl-C and SLURM do."""
    finished = start("none", update="os.killpg(0, signal.SIGINT)")
    assert finished.code == 130, finished.text
    assert "stopped by SIGINT after update 4; the same command goes on" in finished.text
    assert (start.saved, start.updates) == ("global_step4", [1, 2, 3, 4])
    assert "Traceback" not in finished.text


def test_an_update_that_does_not_end_is_given_up(start):
    settings = "stop._PATIENCE_SECONDS = 1.0"
    finished = start("none", update="os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", settings=settings)
    assert finished.code == 143, finished.text
    assert "what was in hand has not ended in 1 s and is given up. The same command goes on from " in finished.text
    assert (start.saved, start.updates) == ("global_step2", [1, 2])


def test_a_signal_in_validation_ends_the_run_at_once(start):
    finished = start("none", validation="os.kill(os.getpid(), signal.SIGTERM)")
    assert finished.code == 143, finished.text
    assert "stopped by SIGTERM after update 2; the same command goes on" in finished.text
    assert "teacher-forced" not in finished.text
    assert start.saved == "global_step2"


@pytest.mark.parametrize("launcher", ["none, two processes", pytest.param("torchrun", marks=pytest.mark.long)])
@two_processes
def test_a_signal_to_one_process_in_validation_stops_all(start, launcher):
    """The other one is in a collective by then, and would wait there for ever."""
    finished = start(launcher, validation="if rank == 1: os.kill(os.getpid(), signal.SIGTERM)")
    if launcher == "torchrun":
        assert finished.code == 1, finished.text
        assert finished.text.count("exitcode  : 143") == 2, "of both, as torchrun reports them"
    else:
        assert finished.code == 143, finished.text
    assert "stopped by SIGTERM after update 2; the same command goes on" in finished.text
    assert "teacher-forced" not in finished.text
    assert not finished.errors
    assert start.saved == "global_step2"


def test_a_signal_before_the_first_update_leaves_nothing_behind(start):
    settings = "trainer.build_for_training = lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)"
    finished = start("none", settings=settings)
    assert finished.code == 143, finished.text
    assert "stopped by SIGTERM before the first update; nothing was changed" in finished.text
    assert "Traceback" not in finished.text
    assert not start.folder.exists(), "neither a lock nor an empty folder"


def test_a_process_that_waits_for_one_that_never_comes_ends_soon_after_the_signal(start):
    """It waits outside of Python, where no handler of a signal runs: for ten minutes, if nobody ended it."""
    of_another = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "9"}
    settings = f"""
os.environ |= {of_another}
from threading import Timer
from utils.data import shared_memory
shared_memory._START_SECONDS = 0  # for annotations it waits no longer than half a minute
join = trainer.init_distributed
def join_and_be_stopped():
    Timer(1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    return join()
trainer.init_distributed = join_and_be_stopped
"""
    began = time.monotonic()
    finished = start("none", settings=settings)
    assert finished.code == 143, finished.text
    assert time.monotonic() - began < 60
    assert not finished.errors
    assert not start.folder.exists()


@two_processes
def test_memory_that_runs_out_is_told_in_one_line_by_one_process_and_ends_all(start):
    """A real failure of the CPU's allocator; the other process waits in a collective by then."""
    finished = start("none, two processes", update="if rank == 1: torch.empty(10**15)")
    assert finished.code == 2, finished.text
    assert len(finished.errors) == 1, finished.text
    (error,) = finished.errors
    assert error.startswith(
        "error: out of memory in update 3, on cpu of process 1 (3725290.30 GiB more were asked for); "
    )
    assert "--precision=bf16" in error
    assert error.endswith("run/ckpt_model/global_step2")
    assert "Traceback" not in finished.text


@pytest.mark.long
@two_processes
def test_memory_of_a_device_that_runs_out_on_all_processes_is_told_by_one(start):
    """CUDA's own class, raised by hand: there may be no GPU here."""
    words = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 79.10 GiB, of which 1.25 GiB is free."
    finished = start("none, two processes", update=f"raise torch.OutOfMemoryError({words!r})")
    assert finished.code == 2, finished.text
    assert len(finished.errors) == 1, finished.text
    (error,) = finished.errors
    assert "(2.50 GiB more were asked for, 1.25 GiB are free)" in error
    assert "Traceback" not in finished.text


def test_what_cannot_fit_into_memory_is_refused_before_the_first_update(start):
    """As in a job that may use one MiB."""
    finished = start("none", settings="memory._cgroup_limit = lambda: 2**20")
    assert finished.code == 2, finished.text
    assert len(finished.errors) == 1, finished.text
    (error,) = finished.errors
    assert error.startswith("error: training takes ")
    assert "of memory on this machine before activations, but there is 1.0 MiB (of a process: weights " in error
    assert "--lora_r" in error
    assert not start.folder.exists()
