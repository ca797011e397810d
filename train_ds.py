"""Train PixelLM: ``deepspeed train_ds.py --version=... --dataset_dir=...``, or plain ``python train_ds.py ...``."""

from __future__ import annotations

from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import exit_at_once, run_command
from utils.cli.config import RunConfig


def train(parsed: Parsed[RunConfig]) -> int:
    """Set a run up, train to its last update, and close it whatever happens; returns the exit code."""
    from utils.training.peers import PeerWatch
    from utils.training.stop import Stopped, StopSignals, tell_stopped

    with StopSignals() as stop, PeerWatch() as peers:  # which process died is told though a launcher sends signals
        try:
            from utils.training.start import resolve_run_flags
            from utils.training.trainer import Trainer

            trainer = Trainer.setup(resolve_run_flags(parsed), peers)
        except Stopped as stopped:
            return tell_stopped(stopped.number, "before the first update; nothing was changed")
        try:
            code = trainer.train(stop)
            peers.finish()
        finally:
            trainer.close()
    return code


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(RunConfig, train, "Train PixelLM with DeepSpeed.", argv)


if __name__ == "__main__":
    exit_at_once(main())
