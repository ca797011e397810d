"""Score a merged model on benchmarks: tables, every answer, and a report to look at.

    python scripts/evaluate.py --version FOLDER --benchmark "MultiReasonSeg|val" --dataset_dir DIR --output_dir OUT

A command that was stopped goes on where it was when it is given again. Under ``torchrun --nproc_per_node N`` the
questions are divided over N processes; the numbers stay the same. ``--rescore OUT`` computes them from the answers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.cli.args import Parsed
from utils.cli.command import INTERRUPTED, run_command
from utils.evaluation.flags import EvaluateConfig


def evaluate(parsed: Parsed[EvaluateConfig]) -> int:
    """Print what was asked for, and write the output folder."""
    config = parsed.config
    if config.efficiency:
        from utils.evaluation.efficiency import efficiency_table

        print(efficiency_table())
        return 0
    if config.compare:
        from utils.evaluation.results import compare_folders

        print(compare_folders(*map(Path, config.compare)))
        return 0
    if config.rescore:
        from utils.evaluation.results import rescore, table

        print(table(rescore(Path(config.rescore), config, parsed.given)))
        return 0
    from utils.evaluation.run import evaluate as evaluate_model

    try:
        evaluate_model(config)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from what {config.output_dir} holds", file=sys.stderr)
        return INTERRUPTED
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(EvaluateConfig, evaluate, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
