"""Answer questions about many images: JSON lines, masks, overlays and a sheet to look at.

    python scripts/predict.py --version FOLDER --input PHOTOS --prompt "Where is the cat?" --output DIR

A command that was stopped goes on where it was when it is given again. Under ``torchrun --nproc_per_node N`` the images
are divided over N processes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from utils.cli.args import Parsed
from utils.cli.command import INTERRUPTED, run_command
from utils.inference.flags import PredictConfig


def predict(parsed: Parsed[PredictConfig]) -> int:
    """Write the output folder."""
    from utils.inference.folder import predict as predict_folder

    try:
        predict_folder(parsed.config, parsed.given)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from what {parsed.config.output} holds", file=sys.stderr)
        return INTERRUPTED
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run_command(PredictConfig, predict, __doc__, argv)


if __name__ == "__main__":
    sys.exit(main())
