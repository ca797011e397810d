"""Train PixelLM: ``deepspeed train_ds.py --version=... --dataset_dir=...``, or plain ``python train_ds.py ...``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import run_command
from utils.cli.config import RunConfig


def train(parsed: Parsed[RunConfig]) -> int:
    """Set a run up, train to its last update, and close it whatever happens; returns the exit code."""
    from utils.training.peers import PeerWatch
    from utils.training.start import resolve_run_flags
    from utils.training.trainer import Trainer

    with PeerWatch() as peers:
        trainer = Trainer.setup(resolve_run_flags(parsed), peers)
        try:
            code = trainer.train()
            peers.finish()
        finally:
            trainer.close()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(RunConfig, train, "Train PixelLM with DeepSpeed.", argv)


if __name__ == "__main__":
    sys.exit(main())
