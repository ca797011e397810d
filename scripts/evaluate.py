"""Score a merged model on validation sets by free generation.

    python scripts/evaluate.py --version FOLDER --dataset_dir DIR --val_dataset "MultiReasonSeg|val"

Under ``torchrun --nproc_per_node N`` the images are divided over N processes; the numbers stay the same.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import run_command
from utils.evaluation.flags import EvaluateConfig


def evaluate(parsed: Parsed[EvaluateConfig]) -> None:
    """Print a table per set, and write the output folder."""
    from utils.evaluation.run import evaluate as evaluate_model

    evaluate_model(parsed.config)


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(EvaluateConfig, evaluate, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
