"""Real runs of training, each in processes of its own, and the losses that they wrote down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from model.errors import InputError
from model.files import write_json
from utils.cli.config import RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]


def told_flags(run: RunConfig, given: Collection[str]) -> dict[str, Any]:
    """The flags of a run that have an effect. With ``--init_from``, the model decides about those left open.

    Args:
        given: names of those that were given.
    """
    return {
        field.name: getattr(run, field.name)
        for field in fields(RunConfig)
        if not field.metadata["unused"] and (field.name in given or getattr(run, field.name) != field.default)
    }


def losses_of(flags: Mapping[str, Any], *, label: str, processes: int = 1) -> list[float]:
    """Train by the real command line; the total loss of each update.

    Args:
        flags: of training. ``log_base_dir`` has to be a folder that is there.
        label: what the run is called in messages.
    Raises:
        InputError: if the run stops, with its own last words.
    """
    runs = Path(flags["log_base_dir"])
    file = runs / "flags.json"
    write_json(file, {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()})
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    finished = subprocess.run(
        [*launcher, str(REPOSITORY / "train_ds.py"), f"--config={file}"], capture_output=True, text=True, check=False
    )
    if finished.returncode:
        lines = (finished.stdout + finished.stderr).splitlines()
        told = next((line for line in lines if line.startswith("error: ")), f"exit code {finished.returncode}")
        raise InputError(f"{label}: the run stopped: {told.removeprefix('error: ')}")
    log = runs / flags["exp_name"] / "log.jsonl"
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [record["total"] for record in records if "total" in record]
