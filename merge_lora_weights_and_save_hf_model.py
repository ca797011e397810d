"""Merge a run's LoRA weights and save a Hugging Face folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import run_command
from utils.cli.config import MergeConfig


def merge(parsed: Parsed[MergeConfig]) -> None:
    """Write the folder of the merged model."""
    from utils.training.merge import merge as merge_run

    merge_run(parsed.config, given=parsed.given)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(MergeConfig, merge, "Merge LoRA weights and save a Hugging Face model.", argv)


if __name__ == "__main__":
    sys.exit(main())
