"""Train PixelLM: ``deepspeed train_ds.py --version=... --dataset_dir=...``, or plain ``python train_ds.py ...``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from model.errors import InputError
from utils.cli.args import parse
from utils.cli.config import RunConfig
from utils.cli.log import report_input_error, setup_logging
from utils.training.start import resolve_run_flags
from utils.training.trainer import Trainer


def main(argv: Sequence[str]) -> int:
    setup_logging()
    try:
        parsed = parse(RunConfig, argv, "Train PixelLM with DeepSpeed.")
        for notice in parsed.notices():
            logging.getLogger("utils").info("%s", notice)
        trainer = Trainer.setup(resolve_run_flags(parsed))
    except InputError as err:
        return report_input_error(err)
    try:
        trainer.train()
    except InputError as err:
        return report_input_error(err, every_rank=True)
    finally:
        trainer.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
