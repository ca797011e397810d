"""Run the real command lines in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

# What an earlier process group in this process may have left behind.
_OF_A_GROUP = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "CROSS_RANK",
    "CROSS_SIZE",
)
# GPUs where there are some; the launcher gives two processes on a machine without.
NUM_PROCESSES = min(2, torch.cuda.device_count() or 2)
TRAIN_FLAGS = (
    "--dataset=multi_reason_seg||refer_seg", "--sample_rates=2,1", "--refer_seg_data=refcoco",
    "--val_dataset=MultiReasonSeg|val", "--seg_token_num=2", "--image_feature_scale_num=2", "--separate_mm_projector",
    "--pad_train_clip_images", "--vision_tower_for_mask", "--out_dim=32", "--precision=fp32", "--lora_dropout=0",
    "--steps_per_epoch=2", "--epochs=2", "--batch_size=1", "--grad_accumulation_steps=2", "--workers=1",
    "--activation_checkpointing=always",
)  # fmt: skip


@dataclass(frozen=True)
class Finished:
    """What is left of a process."""

    code: int
    stdout: str
    stderr: str

    @property
    def text(self) -> str:
        return f"{self.stdout}\n{self.stderr}"

    @property
    def errors(self) -> list[str]:
        """The lines that tell the user what to mend, of any process."""
        return re.findall(r"^error: .*$", self.text, re.MULTILINE)


def start(command: Sequence[str | Path], *, cwd: Path) -> subprocess.Popen[str]:
    """Start a process that leads a group of its own."""
    environment = {
        **{name: value for name, value in os.environ.items() if name not in _OF_A_GROUP},
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    return subprocess.Popen(
        [str(part) for part in command], cwd=cwd, env=environment, text=True, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(command: Sequence[str | Path], *, cwd: Path, stdin: str = "", timeout: float = 240) -> Finished:
    """Run to the end; everything it started is stopped at the time limit."""
    process = start(command, cwd=cwd)
    try:
        stdout, stderr = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"{command} did not end in {timeout} s:\n{stdout}\n{stderr}") from None
    return Finished(process.returncode, stdout, stderr)


def python(*arguments: str | Path, cwd: Path, stdin: str = "") -> Finished:
    return run([sys.executable, *arguments], cwd=cwd, stdin=stdin)


def deepspeed(*arguments: str | Path, cwd: Path) -> Finished:
    """The released way to start training."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return run(["deepspeed", f"--num_gpus={NUM_PROCESSES}", f"--master_port={port}", *arguments], cwd=cwd)
