"""Score a merged model on validation sets by free generation.

    python scripts/evaluate.py --version FOLDER --dataset_dir DIR --val_dataset "MultiReasonSeg|val"

Under ``torchrun --nproc_per_node N`` the images are divided over N processes; the numbers stay the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.errors import InputError
from utils import dist
from utils.cli.args import parse
from utils.cli.log import report_input_error, setup_logging
from utils.evaluation.run import EvaluateConfig, evaluate


def main(argv: Sequence[str]) -> int:
    setup_logging()
    try:
        evaluate(parse(EvaluateConfig, argv, "Score PixelLM by free generation.").config)
    except InputError as err:
        return report_input_error(err, every_rank=dist.is_initialized())
    finally:
        dist.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
