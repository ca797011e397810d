"""Train PixelLM: ``deepspeed train_ds.py --version=... --dataset_dir=...``, or plain ``python train_ds.py ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import run_command
from utils.cli.config import RunConfig


def train(parsed: Parsed[RunConfig]) -> None:
    """Set a run up, train to its last update, and close it whatever happens."""
    from utils.training.start import resolve_run_flags
    from utils.training.trainer import Trainer

    trainer = Trainer.setup(resolve_run_flags(parsed))
    try:
        trainer.train()
    finally:
        trainer.close()


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(RunConfig, train, "Train PixelLM with DeepSpeed.", argv)


if __name__ == "__main__":
    sys.exit(main())
