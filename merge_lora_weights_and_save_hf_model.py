"""Merge a run's LoRA weights and save a Hugging Face folder."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from utils.cli.args import parse
from utils.cli.config import MergeConfig
from utils.cli.log import exit_code, setup_logging
from utils.training.merge import merge


def main(argv: Sequence[str]) -> int:
    setup_logging()

    def run() -> None:
        parsed = parse(MergeConfig, argv, "Merge LoRA weights and save a Hugging Face model.")
        for notice in parsed.notices():
            logging.getLogger("utils").info("%s", notice)
        merge(parsed.config)

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
