"""Merge a run's LoRA weights and save a Hugging Face folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.command import run_command
from utils.cli.config import MergeConfig
from utils.training.merge import merge


def main(argv: Sequence[str] | None = None) -> int:
    description = "Merge LoRA weights and save a Hugging Face model."
    return run_command(MergeConfig, lambda parsed: merge(parsed.config), description, argv)


if __name__ == "__main__":
    sys.exit(main())
