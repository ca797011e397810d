"""docs/launching.md: several machines train as one does, and a job of Slurm goes back to the queue in time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.launch import TRAIN_FLAGS, start

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/train_slurm.sh"
PATIENCE_S = 60


def test_two_machines_make_the_updates_of_one(tiny_world, tmp_path, forks, repository):
    """Two agents of torchrun on one machine, which know of one another by the rendezvous alone."""
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, "--epochs=1", "--no_eval", "--workers=0", "--images_per_update=4"]
    alone = forks.python("train_ds.py", *flags, f"--log_base_dir={tmp_path / 'alone'}", processes=2)
    assert alone.code == 0, alone.text
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        "torchrun", "--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}",
        "--rdzv_id=two", "--local_addr=127.0.0.1", "train_ds.py", *flags, "--precision=auto",
        f"--log_base_dir={tmp_path / 'together'}",
    ]  # fmt: skip
    agents = [start(command, cwd=repository) for _ in range(2)]
    try:
        texts = ["\n".join(agent.communicate(timeout=240)) for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    assert [agent.returncode for agent in agents] == [0, 0], "\n".join(texts)
    assert losses(tmp_path / "together") == losses(tmp_path / "alone")
    told = "--precision auto: fp32, because a CPU is slower in 16 bits"
    assert sum(text.count(told) for text in texts) == 1, "the main process speaks for both machines"
    recorded = json.loads((tmp_path / "together/pixellm/run_config.json").read_text(encoding="utf-8"))
    assert recorded["precision"] == "fp32"


def losses(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "pixellm/log.jsonl").read_text(encoding="utf-8").splitlines()
    found = [{name: record[name] for name in ("total", "ce", "bce", "dice", "lr")} for record in map(json.loads, lines)]
    assert len(found) == 2
    return found


# Each process in a folder of its own, as machines have them that share no disk.
_APART = """
import os, sys
from pathlib import Path
from utils.training import machines
import train_ds

machines._PATIENCE_S = 0.0
os.environ["LOCAL_WORLD_SIZE"] = "1"
place = Path(sys.argv[1], os.environ["RANK"])
place.mkdir()
os.chdir(place)
train_ds.exit_at_once(train_ds.main(sys.argv[2:]))
"""


def test_machines_that_share_no_disk_are_refused_before_weights_are_read(tiny_world, tmp_path, forks):
    flags = [*tiny_world.arguments, *TRAIN_FLAGS, "--log_base_dir=runs"]
    finished = forks.python("-c", _APART, tmp_path, *flags, processes=2)
    assert finished.code == 2, finished.text
    (error,) = finished.errors
    assert "runs/pixellm is not the run directory of process 0" in error
    assert "give a --log_base_dir on a disk that all machines share" in error
    assert not list(tmp_path.rglob("pixellm")), "nothing was changed"


class Cluster:
    """Stand-ins for Slurm's commands, and what the batch script did with them."""

    def __init__(self, folder: Path, *, step: str) -> None:
        self._folder = folder
        self._write("scontrol", f'echo "$@" >> {folder}/asked; if [ "$1" = show ]; then echo first; echo second; fi')
        started = f'echo "$@" > {folder}/srun.partial; mv {folder}/srun.partial {folder}/srun'
        self._write("srun", f"trap 'exit 1' TERM; {started}; {step}")  # told to stop, it ends as torchrun does

    def _write(self, name: str, text: str) -> None:
        file = self._folder / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"#!/usr/bin/env bash\n{text}\n", encoding="utf-8")
        file.chmod(0o755)

    def submit(self, *arguments: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "70001", "SLURM_NNODES": "2",
            "SLURM_JOB_NODELIST": "machines[1-2]", "SLURM_CPUS_PER_TASK": "7", "PYTHON": "python3",
        }  # fmt: skip
        return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=environment, text=True, stdout=subprocess.PIPE)

    def told(self, name: str) -> str:
        deadline = time.monotonic() + PATIENCE_S
        while not (self._folder / name).exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return (self._folder / name).read_text(encoding="utf-8")


def test_slurm_starts_one_torchrun_a_machine_that_meet_at_the_first(tmp_path):
    cluster = Cluster(tmp_path, step="true")
    job = cluster.submit("--dataset=sem_seg||vqa", "--exp_name=a b")
    assert job.wait(timeout=PATIENCE_S) == 0
    assert cluster.told("srun").strip() == (
        "--kill-on-bad-exit=1 --cpus-per-task=7 python3 -m torch.distributed.run --nnodes=2 --nproc_per_node=gpu "
        "--rdzv_id=70001 --rdzv_backend=c10d --rdzv_endpoint=first:30001 train_ds.py --dataset=sem_seg||vqa "
        "--exp_name=a b"
    )
    assert cluster.told("asked") == "show hostnames machines[1-2]\n"


@pytest.mark.parametrize(("number", "is_queued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_a_job_near_its_limit_is_queued_again_and_a_canceled_one_is_not(tmp_path, number, is_queued):
    cluster = Cluster(tmp_path, step="while :; do sleep 0.05; done")
    job = cluster.submit()
    cluster.told("srun")
    job.send_signal(number)
    assert job.wait(timeout=PATIENCE_S) == (0 if is_queued else 1)
    assert ("requeue 70001" in cluster.told("asked")) == is_queued


def test_an_error_is_not_queued_again(tmp_path):
    cluster = Cluster(tmp_path, step="false")
    assert cluster.submit().wait(timeout=PATIENCE_S) == 1
    assert "requeue" not in cluster.told("asked")


def test_the_hostfile_is_one_that_deepspeed_reads(repository):
    from deepspeed.launcher.runner import fetch_hostfile

    assert dict(fetch_hostfile(str(repository / "configs/hostfile.example"))) == {"node1": 8, "node2": 8}
